// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/proxy/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// exchange is a request that goes to a laptop, and its answer.
type exchange struct {
	claim      Claim
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

	// With Router.mu held.
	sent  []byte // what was sent of it, as long as that is not too much and it is not answered
	whole bool   // sent is all
}

// forget lets go of the bytes. mu is held.
func (ex *exchange) forget() { ex.sent, ex.whole = nil, false }

// offer gives the request that r.req holds, n bytes of head, to the laptop that claims it. taken is
// false if the laptop cannot take it; nothing has happened to the request then.
func (r *Router) offer(claim Claim, n int) (taken bool, err error) {
	if err := r.flush(); err != nil {
		return false, err
	}
	if err := r.await(func() bool { return r.idle() || r.raw.Load() }); err != nil {
		return false, err
	}
	rest := r.req.Body().Start()
	k, done := 0, rest.Done()
	if !done {
		var doubt error
		if k, done, doubt = rest.Scan(r.in.Bytes()[n:]); doubt != nil {
			return false, nil // whoever passes it on will find that out
		}
	}
	r.mu.Lock()
	raw := r.raw.Load()
	r.matched = !raw
	r.mu.Unlock()
	if raw {
		return false, nil
	}
	ex := &exchange{
		claim: claim, kind: r.req.Kind(), method: string(r.req.Method()), idempotent: r.req.Idempotent(),
		final: !r.req.Persists(), expects: r.req.Expects() && k == 0, open: !done,
		sent: slices.Clone(r.in.Bytes()[:n+k]), whole: true,
	}
	if !r.reuse(ex) {
		if err := r.open(ex); err != nil {
			claim.FellBack(err)
			return false, nil
		}
	}
	claim.Sent()
	r.in.Drop(n + k)
	r.hold = r.req.Switches()
	return true, r.sendBody(ex, &rest)
}

// reuse sends what there is of ex through a tunnel that is open already.
func (r *Router) reuse(ex *exchange) bool {
	r.mu.Lock()
	i := slices.IndexFunc(r.tunnels, func(p *peer) bool {
		return p.claim.Key() == ex.claim.Key() && !p.ended && !p.retired && !p.open
	})
	if i < 0 {
		r.mu.Unlock()
		return false
	}
	p := r.tunnels[i]
	ex.reused = true
	r.begin(ex, p)
	r.mu.Unlock()
	p.Write(ex.sent) // an error shows as the end of the tunnel
	return true
}

// open sends what there is of ex through a new tunnel, and fails unless the laptop takes it. The
// bytes are kept until then.
func (r *Router) open(ex *exchange) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.OpenTimeout)
	defer cancel()
	t, err := r.openTunnel(ctx, ex)
	if err != nil {
		return err
	}
	p := &peer{r: r, claim: ex.claim, Duplex: stream.Of(t, func() { t.Reset("connection was reset") })}
	r.mu.Lock()
	ex.reused = false
	r.tunnels = append(r.tunnels, p)
	r.begin(ex, p)
	aborted := r.aborted
	r.mu.Unlock()
	if aborted {
		p.Reset()
	}
	p.untrack = ex.claim.Track(p.retire)
	r.spawn(p.respond)
	return nil
}

func (r *Router) openTunnel(ctx context.Context, ex *exchange) (Tunnel, error) {
	t, err := ex.claim.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	// a write may be held back
	stop := context.AfterFunc(ctx, func() { t.Reset("laptop did not answer in time") })
	if _, err = t.Write(ex.sent); err == nil {
		var opened *tunnelpb.Opened
		opened, err = t.Opened(ctx)
		if err == nil && opened.GetResult() != tunnelpb.Opened_OK {
			err = fmt.Errorf("laptop answered %s: %s", opened.GetResult(), opened.GetMessage())
		}
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		t.Reset("the request went to the app")
		return nil, err
	}
	return t, nil
}

// begin makes p the one to answer ex. mu is held.
func (r *Router) begin(ex *exchange, p *peer) {
	ex.peer, p.ex = p, ex
	r.ex, r.turn = ex, p
	p.unanswered.push(ex.kind)
	p.open, p.final, p.empty = ex.open, ex.final, ex.expects
}

// sendBody passes the rest of the request's body on to whoever has it.
func (r *Router) sendBody(ex *exchange, rest *http1.Rest) error {
	for !rest.Done() {
		if r.in.Len() == 0 {
			if err := r.fill(); err != nil {
				return err
			}
		}
		if ex.app != nil {
			if err := r.passBody(rest, ex.copies); err != nil {
				ex.copies.Cut()
				return err
			}
			ex.copies.End()
			return nil
		}
		n, done, doubt := rest.Scan(r.in.Bytes())
		if doubt != nil {
			r.Log.Debug("connection is reset", "intercept", ex.claim.String(), "reason", doubt)
			return errAborted // the laptop has the start of it, so the app cannot have it
		}
		if err := r.sendSome(ex, r.in.Bytes()[:n], done); err != nil {
			return err
		}
		r.in.Drop(n)
	}
	return nil
}

// sendSome sends a piece of the body of ex. Pieces are kept as long as they may have to be sent
// again.
func (r *Router) sendSome(ex *exchange, piece []byte, done bool) error {
	p := ex.peer
	r.mu.Lock()
	if ex.whole && len(ex.sent)+len(piece) <= maxRetained {
		ex.sent = append(ex.sent, piece...)
	} else {
		ex.forget()
	}
	ex.open = !done
	p.empty = false
	failed := p.failed
	if !failed {
		p.open = !done
	}
	over := p.ended && !failed
	r.mu.Unlock()
	if failed {
		return r.mend()
	}
	if !over {
		if _, err := p.Write(piece); err == nil {
			return nil
		}
	}
	// The tunnel is gone. Either it was not answered, which await mends, or the answer came early.
	mended := func() bool { return ex.peer != p || ex.app != nil }
	if err := r.await(func() bool { return mended() || p.unanswered.len() == 0 }); err != nil {
		return err
	}
	if mended() {
		return nil // the piece went with the rest
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conclude()
	return errClosing
}

// mend finds somebody else to answer an exchange whose tunnel ended without an answer. A tunnel
// that had been used before may have been closed by the local process while the request was on its
// way, as servers close idle connections, so a new one is tried. Otherwise the local process may
// have acted on the request: only what may be done twice goes to the app.
func (r *Router) mend() error {
	ex := r.ex
	r.mu.Lock()
	ex.peer.failed = false
	if r.turn == ex.peer {
		r.turn = nil
	}
	r.ex = nil
	if !r.linger {
		r.Client.SetReadDeadline(time.Time{})
	}
	r.mu.Unlock()
	if !ex.whole {
		return r.badGateway(ex, "it was too long to be kept")
	}
	why := errUnanswered
	if ex.reused {
		if why = r.open(ex); why == nil {
			return nil
		}
	}
	if !ex.idempotent {
		return r.badGateway(ex, ex.method+" may not be done twice")
	}
	ex.claim.FellBack(why)
	app, err := r.appTurn(func(app *peer) {
		app.unanswered.push(ex.kind)
		app.open = ex.open
		r.http = true
		if ex.final {
			r.raw.Store(true)
		}
	})
	if err != nil {
		return err
	}
	ex.app = app
	r.copyAgain(ex)
	r.Passed(1)
	if _, err := app.Write(ex.sent); err != nil {
		return r.appBroke(app)
	}
	return nil
}

// copyAgain begins the copies of a request that goes to the app after all.
func (r *Router) copyAgain(ex *exchange) {
	var head http1.Request
	head.Reset()
	if n, err := head.Parse(ex.sent); n == 0 || err != nil {
		return
	}
	ex.copies = r.copies(&head)
	ex.copies.Write(ex.sent)
	if !ex.open {
		ex.copies.End()
	}
}

// badGateway answers a request that nobody can answer.
func (r *Router) badGateway(ex *exchange, why string) error {
	text := fmt.Sprintf("sidestep: the laptop that intercepts this request (%s) went away before it answered.\n"+
		"The request was not given to the app instead: %s.\n", ex.claim, why)
	answer := fmt.Sprintf("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n", len(text))
	if ex.kind != http1.Head {
		answer += text
	}
	r.Log.Warn("request was answered with 502", "intercept", ex.claim.String(), "reason", why)
	if _, err := io.WriteString(r.Client, answer); err != nil {
		return errAborted
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conclude()
	return errClosing
}

// retire closes an idle tunnel, and a busy one once it is answered.
func (p *peer) retire() {
	p.r.mu.Lock()
	p.retired = true
	idle := p.unanswered.len() == 0 && !p.open
	p.r.mu.Unlock()
	if idle {
		p.Close()
	}
}

// tunnelEnded lets go of a tunnel, and has an unanswered request seen to.
func (p *peer) tunnelEnded(err error) {
	r := p.r
	p.untrack()
	r.mu.Lock()
	p.ended = true
	busy := p.unanswered.len() > 0
	switched := r.switched == p
	if !switched { // the other direction may go on
		r.tunnels = slices.DeleteFunc(r.tunnels, func(t *peer) bool { return t == p })
	}
	failed := busy && !p.started && !r.aborted
	p.failed = failed
	if failed {
		r.Client.SetReadDeadline(time.Unix(1, 0)) // wake whoever reads it
	}
	r.changed.Broadcast()
	r.mu.Unlock()
	switch {
	case switched && !stream.IsReset(err):
		r.Client.CloseWrite()
	case busy && !failed:
		p.Reset()
		r.abort()
	default:
		p.Close()
	}
}
