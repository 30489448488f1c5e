// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"context"
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// startApp begins to connect to the app. mu is held.
func (c *Conn) startApp() {
	p := &peer{c: c, dialing: true}
	c.app = p
	c.spawn(func() { p.runApp(c.Target.Dial(true)) })
}

// firstApp is startApp for a connection of which nothing has been read. An app that can be had at
// once is had when this returns, so that nobody has to wait for another goroutine to say so.
func (c *Conn) firstApp() {
	p := &peer{c: c, dialing: true}
	c.mu.Lock()
	c.app = p
	c.mu.Unlock()
	client, ok := c.Client.(waiter)
	d, wait, err := c.Target.Dial(ok && client.Waiting())
	switch {
	case err != nil || wait != nil:
		c.spawn(func() { p.runApp(d, wait, err) })
	case p.connected(d):
		c.spawn(p.respond)
	}
}

// runApp is what a peer does when Dial has returned.
func (p *peer) runApp(d stream.Duplex, wait func(context.Context) error, err error) {
	c := p.c
	if err == nil && wait != nil {
		if err = wait(c.ctx); err != nil {
			d.Reset()
		}
	}
	if err != nil {
		c.appRefused(p, err)
		return
	}
	if p.connected(d) {
		p.respond()
	}
}

// connected says that d is the app, and reports whether it is still wanted.
func (p *peer) connected(d stream.Duplex) bool {
	c := p.c
	c.mu.Lock()
	p.dialing = false
	over := c.aborted || c.closing
	if !over {
		p.Duplex = d
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	if over {
		d.Close()
	}
	return !over
}

// appRefused decides what the client sees of an app that takes no connections: the same, a reset;
// unless it may still send a request that is not the app's.
func (c *Conn) appRefused(p *peer, err error) {
	c.Log.Debug("app takes no connection", "error", err)
	matchable := c.Target.Matchable()
	c.mu.Lock()
	if c.app == p {
		c.app = nil
	}
	if p.wanted || c.gone || !matchable {
		c.aborted = true
	}
	aborted := c.aborted
	c.changed.Broadcast()
	c.mu.Unlock()
	if aborted {
		c.abort()
		return
	}
	time.AfterFunc(refusedFor, func() {
		c.mu.Lock()
		silent := c.turn == nil && !c.matched
		c.mu.Unlock()
		if silent {
			c.abort()
		}
	})
}

// appTurn waits until requests can be written to the app, connecting to it if need be. prepare is
// called with mu held.
func (c *Conn) appTurn(prepare func(app *peer)) (app *peer, err error) {
	err = c.await(func() bool {
		if !c.idle() && c.turn.intercept != nil {
			return false
		}
		if c.app == nil {
			c.startApp()
		}
		if c.app.dialing {
			c.app.wanted = true
			return false
		}
		if c.app.unanswered.len() >= maxUnanswered && !c.raw.Load() {
			return false
		}
		app = c.app
		c.turn, c.matched = app, false
		prepare(app)
		return true
	})
	return app, err
}

// appBroke is what becomes of the connection when the app takes no more: the client still gets what
// the app has said.
func (c *Conn) appBroke(p *peer) error {
	if err := c.await(func() bool { return p.ended }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conclude()
	return errClosing
}

// appEnded passes the end of the app's stream on to the client, as far as it concerns the client.
func (p *peer) appEnded(err error) {
	c := p.c
	if n := p.buf.Len(); n > 0 { // an unfinished head
		c.Client.Write(p.buf.Bytes())
		p.buf.Free()
	}
	if c.appGone(p, err) {
		c.abort()
	}
}

// appGone does what appEnded says, but for a reset, which it reports.
func (c *Conn) appGone(p *peer, err error) (reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.ended = true
	c.changed.Broadcast()
	switch {
	case c.app != p: // it was let go
	case c.matched && !c.gone && !c.raw.Load() && p.unanswered.len() == 0:
		// The client is busy with a laptop. The app has seen an idle connection, and closed it.
		c.app = nil
		p.Close()
	case stream.IsReset(err):
		return true
	default:
		c.raw.Store(true) // what the client still sends meets the end that it would have met
		if c.http {
			c.lingering(lingerFor)
		} else {
			c.Client.CloseWrite()
		}
	}
	return false
}

// unsolicited decides what becomes of bytes that answer no request, and reports whether the client
// is to get them.
func (p *peer) unsolicited() bool {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaitPreface(p.buf.Bytes()); c.http2 != nil {
		return true
	}
	if c.app != p || p.unanswered.len() > 0 {
		return c.app == p
	}
	if c.matched {
		// A server that says that it was idle for too long, while the client was busy with a
		// laptop.
		c.app = nil
		return false
	}
	c.http = false
	c.appDoubt = errAppNotHTTP
	c.raw.Store(true) // the app speaks first
	c.changed.Broadcast()
	return true
}
