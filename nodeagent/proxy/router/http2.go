// SPDX-License-Identifier: Apache-2.0

package router

import (
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// HTTP2 serves a connection of HTTP/2.
type HTTP2 interface {
	// FromClient serves what the client sends, first what is in b, which begins with the preface,
	// until the connection is over.
	FromClient(b *stream.Buffer)
	// FromApp serves what the app sends, first what is in b. err is what has ended it already, or
	// nil.
	FromApp(b *stream.Buffer, err error)
	// WindUp asks the client to go elsewhere, and ends the connection soon.
	WindUp()
}

// preface is what a client of HTTP/2 sends first (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// prefaceWait bounds how long SETTINGS are held back that the app sends before its client has said
// anything.
const prefaceWait = time.Second

// handOver gives the connection to who serves HTTP/2, unless it is the app's already.
func (r *Router) handOver() error {
	r.first = false
	var h HTTP2
	_, err := r.appTurn(func(app *peer) {
		if !r.raw.Load() && !app.ended {
			h = r.HTTP2(r.ctx, app.Duplex)
			r.http2, r.spoken = h, true
			r.changed.Broadcast()
		}
	})
	switch {
	case err != nil:
		return err
	case h == nil:
		return r.turnRaw(nil)
	}
	h.FromClient(&r.in)
	return errOver
}

// takenOver gives what the app sends to whoever has taken the connection over, and reports whether
// somebody has. err is what has ended the app.
func (p *peer) takenOver(err error) bool {
	p.r.mu.Lock()
	h := p.r.http2
	p.r.mu.Unlock()
	if h == nil {
		return false
	}
	h.FromApp(&p.buf, err)
	return true
}

// speaks says that the client speaks HTTP/1.
func (r *Router) speaks() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoken = true
	r.changed.Broadcast()
}

// awaitPreface waits for the client to show what it speaks, if the app's first bytes look like
// SETTINGS: a server of HTTP/2 may send them at once. mu is held.
func (r *Router) awaitPreface(p []byte) {
	settings := len(p) >= 9 && p[0] == 0 && p[3] == 4 && string(p[4:9]) == "\x00\x00\x00\x00\x00"
	if r.HTTP2 == nil || r.spoken || !settings {
		return
	}
	over := false
	defer time.AfterFunc(prefaceWait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		over = true
		r.changed.Broadcast()
	}).Stop()
	for !over && !r.spoken && !r.raw.Load() && !r.gone && !r.aborted && !r.closing {
		r.changed.Wait()
	}
}
