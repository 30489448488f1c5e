// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// exchange is a request that goes to a laptop, and its answer.
type exchange struct {
	intercept  divert.Intercept
	peer       *peer
	kind       http1.RequestKind
	method     string
	idempotent bool
	final      bool       // the client means to send no more
	expects    bool       // the client may wait before it sends the body
	open       bool       // the body is not complete
	reused     bool       // the tunnel had been used before
	app        *peer      // set when it was given to the app after all
	copies     tap.Copies // of what the app was given

	// With Conn.mu held.
	sent  []byte // what was sent of it, as long as that is not too much and it is not answered
	whole bool   // sent is all
}

// offer gives the request that c.req holds, n bytes of head, to the laptop that matches it. taken is
// false if the laptop cannot take it; nothing has happened to the request then.
func (c *Conn) offer(intercept divert.Intercept, n int) (taken bool, err error) {
	if err := c.flush(); err != nil {
		return false, err
	}
	if err := c.await(func() bool { return c.idle() || c.raw.Load() }); err != nil {
		return false, err
	}
	rest := c.req.Body().Start()
	k, done := 0, rest.Done()
	if !done {
		var doubt error
		if k, done, doubt = rest.Scan(c.in.Bytes()[n:]); doubt != nil {
			intercept.FellBack(errFraming)
			return false, nil // whoever passes it on will find that out
		}
	}
	c.mu.Lock()
	raw := c.raw.Load()
	room := !raw && c.keep(n+k)
	c.matched = room
	appDoubt := c.appDoubt
	c.mu.Unlock()
	switch {
	case raw && appDoubt != nil:
		intercept.FellBack(appDoubt)
		c.doubt = appDoubt
		return false, nil
	case raw: // the app's last answer ends the connection
		return false, nil
	case !room:
		intercept.FellBack(errBusy)
		return false, nil
	}
	ex := &exchange{
		intercept: intercept, kind: c.req.Kind(), method: string(c.req.Method()), idempotent: c.req.Idempotent(),
		final: !c.req.Persists(), expects: c.req.Expects() && k == 0, open: !done,
		sent: slices.Clone(c.in.Bytes()[:n+k]), whole: true,
	}
	if !c.reuse(ex) {
		if err := c.open(ex); err != nil {
			intercept.FellBack(err)
			c.mu.Lock()
			c.forget(ex)
			c.mu.Unlock()
			return false, nil
		}
	}
	intercept.Sent()
	c.in.Drop(n + k)
	c.hold = c.req.Switches()
	return true, c.sendBody(ex, &rest)
}

// reuse sends what there is of ex through a tunnel that is open already.
func (c *Conn) reuse(ex *exchange) bool {
	c.mu.Lock()
	i := slices.IndexFunc(c.tunnels, func(p *peer) bool {
		return p.intercept.Key() == ex.intercept.Key() && !p.ended && !p.retired && !p.open
	})
	if i < 0 {
		c.mu.Unlock()
		return false
	}
	p := c.tunnels[i]
	ex.reused = true
	c.begin(ex, p)
	c.mu.Unlock()
	p.Write(ex.sent) // an error shows as the end of the tunnel
	return true
}

// open sends what there is of ex through a new tunnel, and fails unless the laptop takes it. The
// bytes are kept until then.
func (c *Conn) open(ex *exchange) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.OpenTimeout)
	defer cancel()
	t, err := c.openTunnel(ctx, ex)
	if err != nil {
		return err
	}
	p := &peer{c: c, intercept: ex.intercept, Duplex: stream.Of(t, func() { t.Reset("connection was reset") })}
	c.mu.Lock()
	ex.reused = false
	c.tunnels = append(c.tunnels, p)
	c.begin(ex, p)
	aborted := c.aborted
	c.mu.Unlock()
	if aborted {
		p.Reset()
	}
	p.untrack = ex.intercept.Track(p.retire)
	c.spawn(p.respond)
	return nil
}

func (c *Conn) openTunnel(ctx context.Context, ex *exchange) (divert.Tunnel, error) {
	t, err := ex.intercept.Open(ctx)
	if err != nil {
		return nil, divert.Opening(fmt.Errorf("open tunnel: %w", err))
	}
	// a write may be held back
	stop := context.AfterFunc(ctx, func() { t.Reset("laptop did not answer in time") })
	if _, err = t.Write(ex.sent); err == nil {
		var opened *tunnelpb.Opened
		opened, err = t.Opened(ctx)
		if err == nil {
			err = divert.NotOpened(opened)
		}
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err = divert.NoAnswer(ctx, err); err != nil {
		t.Reset("the request went to the app")
		return nil, err
	}
	return t, nil
}

// begin makes p the one to answer ex. mu is held.
func (c *Conn) begin(ex *exchange, p *peer) {
	ex.peer, p.ex = p, ex
	c.ex, c.turn = ex, p
	p.unanswered.push(ex.kind)
	p.open, p.final, p.empty = ex.open, ex.final, ex.expects
}

// sendBody passes the rest of the request's body on to whoever has it.
func (c *Conn) sendBody(ex *exchange, rest *http1.Rest) error {
	for !rest.Done() {
		if c.in.Len() == 0 {
			if err := c.fill(); err != nil {
				return err
			}
		}
		if ex.app != nil {
			if err := c.passBody(rest, ex.copies); err != nil {
				ex.copies.Cut()
				return err
			}
			ex.copies.End()
			return nil
		}
		n, done, doubt := rest.Scan(c.in.Bytes())
		if doubt != nil {
			c.Log.Debug("connection is reset", "intercept", ex.intercept.String(), "reason", doubt)
			ex.intercept.Lost(errFraming)
			return errAborted // the laptop has the start of it, so the app cannot have it
		}
		if err := c.sendSome(ex, c.in.Bytes()[:n], done); err != nil {
			return err
		}
		c.in.Drop(n)
	}
	return nil
}

// sendSome sends a piece of the body of ex. Pieces are kept as long as they may have to be sent
// again.
func (c *Conn) sendSome(ex *exchange, piece []byte, done bool) error {
	p := ex.peer
	c.mu.Lock()
	if size := len(ex.sent) + len(piece); ex.whole && size <= maxRetained && c.keep(size) {
		ex.sent = append(ex.sent, piece...)
	} else {
		c.forget(ex)
	}
	ex.open = !done
	p.empty = false
	failed := p.failed
	if !failed {
		p.open = !done
	}
	over := p.ended && !failed
	c.mu.Unlock()
	if failed {
		return c.mend()
	}
	if !over {
		if _, err := p.Write(piece); err == nil {
			return nil
		}
	}
	// The tunnel is gone. Either it was not answered, which await mends, or the answer came early.
	mended := func() bool { return ex.peer != p || ex.app != nil }
	if err := c.await(func() bool { return mended() || p.unanswered.len() == 0 }); err != nil {
		return err
	}
	if mended() {
		return nil // the piece went with the rest
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conclude()
	return errClosing
}

// mend finds somebody else to answer an exchange whose tunnel ended without an answer. A tunnel
// that had been used before may have been closed by the local process while the request was on its
// way, as servers close idle connections, so a new one is tried. Otherwise the local process may
// have acted on the request: only what may be done twice goes to the app.
func (c *Conn) mend() error {
	ex := c.ex
	c.mu.Lock()
	ex.peer.failed = false
	why := divert.Ended(ex.peer.failure)
	if c.turn == ex.peer {
		c.turn = nil
	}
	c.ex = nil
	if !c.linger {
		c.Client.SetReadDeadline(time.Time{})
	}
	c.mu.Unlock()
	if !ex.whole {
		return c.badGateway(ex, why, "it was too long to be kept")
	}
	if ex.reused {
		if why = c.open(ex); why == nil {
			return nil
		}
	}
	if !ex.idempotent && divert.ReasonOf(why) != divert.LocalTLS { // which has not read the request
		return c.badGateway(ex, why, ex.method+" may not be done twice")
	}
	ex.intercept.FellBack(why)
	app, err := c.appTurn(func(app *peer) {
		app.unanswered.push(ex.kind)
		app.open = ex.open
		c.http = true
		if ex.final {
			c.raw.Store(true)
		}
	})
	if err != nil {
		return err
	}
	ex.app = app
	c.copyAgain(ex)
	c.Target.Passed(1)
	_, err = app.Write(ex.sent)
	c.mu.Lock()
	c.forget(ex)
	c.mu.Unlock()
	if err != nil {
		return c.appBroke(app)
	}
	return nil
}

// copyAgain begins the copies of a request that goes to the app after all.
func (c *Conn) copyAgain(ex *exchange) {
	var head http1.Request
	head.Reset()
	if n, err := head.Parse(ex.sent); n == 0 || err != nil {
		return
	}
	ex.copies = c.Target.Copy(&head)
	ex.copies.Write(ex.sent)
	if !ex.open {
		ex.copies.End()
	}
}

// badGateway answers a request that nobody can answer.
func (c *Conn) badGateway(ex *exchange, why error, notApp string) error {
	text := fmt.Sprintf("sidestep: intercept %s: %s.\nThe request was not given to the app instead: %s.\n",
		ex.intercept, why, notApp)
	answer := fmt.Sprintf("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n", len(text))
	if ex.kind != http1.Head {
		answer += text
	}
	ex.intercept.Lost(why)
	c.Log.Warn("request was answered with 502", "intercept", ex.intercept.String(), "reason", why, "app", notApp)
	if _, err := io.WriteString(c.Client, answer); err != nil {
		return errAborted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conclude()
	return errClosing
}

// retire closes an idle tunnel, and a busy one once it is answered.
func (p *peer) retire() {
	p.c.mu.Lock()
	p.retired = true
	idle := p.unanswered.len() == 0 && !p.open
	p.c.mu.Unlock()
	if idle {
		p.Close()
	}
}

// tunnelEnded lets go of a tunnel, and has an unanswered request seen to.
func (p *peer) tunnelEnded(err error) {
	c := p.c
	p.untrack()
	c.mu.Lock()
	p.ended = true
	busy := p.unanswered.len() > 0
	switched := c.switched == p
	if !switched { // the other direction may go on
		c.tunnels = slices.DeleteFunc(c.tunnels, func(t *peer) bool { return t == p })
	}
	failed := busy && !p.started && !c.aborted
	p.failed = failed
	if failed {
		p.failure = err
		c.Client.SetReadDeadline(time.Unix(1, 0)) // wake whoever reads it
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	switch {
	case switched && !stream.IsReset(err):
		c.Client.CloseWrite()
	case busy && !failed:
		p.Reset()
		c.abort()
	default:
		p.Close()
	}
}
