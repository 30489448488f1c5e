// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/http2"
)

// preface is what a client of HTTP/2 sends first (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// prefaceWait bounds how long SETTINGS are held back that the app sends before its client has said
// anything.
const prefaceWait = time.Second

// handOver gives the connection to who serves HTTP/2, unless it is the app's already.
func (c *Conn) handOver() error {
	c.first = false
	var h *http2.Conn
	_, err := c.appTurn(func(app *peer) {
		if !c.raw.Load() && !app.ended {
			h = http2.New(c.ctx, http2.Config{Client: c.Client, App: app.Duplex, Target: c.HTTP2,
				OpenTimeout: c.OpenTimeout, Budget: c.Budget, Log: c.Log})
			c.http2, c.spoken = h, true
			c.changed.Broadcast()
		}
	})
	switch {
	case err != nil:
		return err
	case h == nil:
		return c.turnRaw(nil)
	}
	c.awaitsNone()
	h.FromClient(&c.in)
	return errOver
}

// takenOver gives what the app sends to whoever has taken the connection over, and reports whether
// somebody has. err is what has ended the app.
func (p *peer) takenOver(err error) bool {
	p.c.mu.Lock()
	h := p.c.http2
	p.c.mu.Unlock()
	if h == nil {
		return false
	}
	h.FromApp(&p.buf, err)
	return true
}

// speaks says that the client speaks HTTP/1.
func (c *Conn) speaks() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoken = true
	c.changed.Broadcast()
}

// awaitPreface waits for the client to show what it speaks, if the app's first bytes look like
// SETTINGS: a server of HTTP/2 may send them at once. mu is held.
func (c *Conn) awaitPreface(p []byte) {
	settings := len(p) >= 9 && p[0] == 0 && p[3] == 4 && string(p[4:9]) == "\x00\x00\x00\x00\x00"
	if c.HTTP2 == nil || c.spoken || !settings {
		return
	}
	over := false
	defer time.AfterFunc(prefaceWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		over = true
		c.changed.Broadcast()
	}).Stop()
	for !over && !c.spoken && !c.raw.Load() && !c.gone && !c.aborted && !c.closing {
		c.changed.Wait()
	}
}
