// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// startApp begins to connect to the app. mu is held.
func (r *Router) startApp() {
	p := &peer{r: r, dialing: true}
	r.app = p
	r.spawn(func() { p.runApp(r.Dial(true)) })
}

// firstApp is startApp for a connection of which nothing has been read. An app that can be had at
// once is had when this returns, so that nobody has to wait for another goroutine to say so.
func (r *Router) firstApp() {
	p := &peer{r: r, dialing: true}
	r.mu.Lock()
	r.app = p
	r.mu.Unlock()
	client, ok := r.Client.(waiter)
	d, wait, err := r.Dial(ok && client.Waiting())
	switch {
	case err != nil || wait != nil:
		r.spawn(func() { p.runApp(d, wait, err) })
	case p.connected(d):
		r.spawn(p.respond)
	}
}

// runApp is what a peer does when Dial has returned.
func (p *peer) runApp(d stream.Duplex, wait func(context.Context) error, err error) {
	r := p.r
	if err == nil && wait != nil {
		if err = wait(r.ctx); err != nil {
			d.Reset()
		}
	}
	if err != nil {
		r.appRefused(p, err)
		return
	}
	if p.connected(d) {
		p.respond()
	}
}

// connected says that d is the app, and reports whether it is still wanted.
func (p *peer) connected(d stream.Duplex) bool {
	r := p.r
	r.mu.Lock()
	p.dialing = false
	over := r.aborted || r.closing
	if !over {
		p.Duplex = d
	}
	r.changed.Broadcast()
	r.mu.Unlock()
	if over {
		d.Close()
	}
	return !over
}

// appRefused decides what the client sees of an app that takes no connections: the same, a reset;
// unless it may still send a request that is not the app's.
func (r *Router) appRefused(p *peer, err error) {
	r.Log.Debug("app takes no connection", "error", err)
	claimable := r.Claimable()
	r.mu.Lock()
	if r.app == p {
		r.app = nil
	}
	if p.wanted || r.gone || !claimable {
		r.aborted = true
	}
	aborted := r.aborted
	r.changed.Broadcast()
	r.mu.Unlock()
	if aborted {
		r.abort()
		return
	}
	time.AfterFunc(refusedFor, func() {
		r.mu.Lock()
		silent := r.turn == nil && !r.matched
		r.mu.Unlock()
		if silent {
			r.abort()
		}
	})
}

// appTurn waits until requests can be written to the app, connecting to it if need be. prepare is
// called with mu held.
func (r *Router) appTurn(prepare func(app *peer)) (app *peer, err error) {
	err = r.await(func() bool {
		if !r.idle() && r.turn.claim != nil {
			return false
		}
		if r.app == nil {
			r.startApp()
		}
		if r.app.dialing {
			r.app.wanted = true
			return false
		}
		if r.app.unanswered.len() >= maxUnanswered && !r.raw.Load() {
			return false
		}
		app = r.app
		r.turn, r.matched = app, false
		prepare(app)
		return true
	})
	return app, err
}

// appBroke is what becomes of the connection when the app takes no more: the client still gets what
// the app has said.
func (r *Router) appBroke(p *peer) error {
	if err := r.await(func() bool { return p.ended }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conclude()
	return errClosing
}

// appEnded passes the end of the app's stream on to the client, as far as it concerns the client.
func (p *peer) appEnded(err error) {
	r := p.r
	if n := p.buf.Len(); n > 0 { // an unfinished head
		r.Client.Write(p.buf.Bytes())
		p.buf.Free()
	}
	if r.appGone(p, err) {
		r.abort()
	}
}

// appGone does what appEnded says, but for a reset, which it reports.
func (r *Router) appGone(p *peer, err error) (reset bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.ended = true
	r.changed.Broadcast()
	switch {
	case r.app != p: // it was let go
	case r.matched && !r.gone && !r.raw.Load() && p.unanswered.len() == 0:
		// The client is busy with a laptop. The app has seen an idle connection, and closed it.
		r.app = nil
		p.Close()
	case stream.IsReset(err):
		return true
	default:
		r.raw.Store(true) // what the client still sends meets the end that it would have met
		if r.http {
			r.lingering(lingerFor)
		} else {
			r.Client.CloseWrite()
		}
	}
	return false
}

// unsolicited decides what becomes of bytes that answer no request, and reports whether the client
// is to get them.
func (p *peer) unsolicited() bool {
	r := p.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.awaitPreface(p.buf.Bytes()); r.http2 != nil {
		return true
	}
	if r.app != p || p.unanswered.len() > 0 {
		return r.app == p
	}
	if r.matched {
		// A server that says that it was idle for too long, while the client was busy with a
		// laptop.
		r.app = nil
		return false
	}
	r.http = false
	r.raw.Store(true) // the app speaks first
	r.changed.Broadcast()
	return true
}
