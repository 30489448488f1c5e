// SPDX-License-Identifier: Apache-2.0

package router

import (
	"io"
	"slices"

	"sidestep.dev/sidestep/nodeagent/proxy/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// batch is what stands at the front of the input for the app, and has not been written yet.
type batch struct {
	size  int // bytes
	kinds [64]http1.RequestKind
	n     int  // requests
	open  bool // the last one's body goes on behind it
}

// requests reads the client's requests until it sends no more. It returns nil when the responses
// are to go on.
func (r *Router) requests() error {
	for {
		if r.hold && r.in.Len() > 0 {
			if err := r.await(r.understood); err != nil {
				return err
			}
			r.hold = false
		}
		switch {
		case r.raw.Load():
			return r.passRaw()
		case r.switchedTo() != nil:
			return r.passSwitched()
		}
		more, err := r.next()
		if err == nil && more {
			if err = r.flush(); err == nil {
				err = r.fill()
			}
		}
		if err == io.EOF {
			return r.halfClose()
		}
		if err != nil {
			return err
		}
	}
}

// understood reports whether what stands behind a request that may end HTTP can be read. mu is
// held.
func (r *Router) understood() bool { return r.idle() || r.raw.Load() || r.switched != nil }

func (r *Router) switchedTo() *peer {
	if r.ex == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.switched
}

// next takes one request from the input, as far as it is there. more says that it needs more input
// first.
func (r *Router) next() (more bool, err error) {
	p := r.in.Bytes()[r.batch.size:]
	if len(p) == 0 {
		return true, nil
	}
	if r.first && r.HTTP2 != nil {
		switch n := min(len(p), len(preface)); {
		case string(p[:n]) != preface[:n]:
		case n < len(preface):
			return true, nil
		default:
			r.Began(p, true)
			return false, r.handOver()
		}
	}
	if r.first && !http1.MayBeRequest(p) {
		r.Began(p, false)
		return false, r.turnRaw(nil)
	}
	n, doubt := r.req.Parse(p)
	if doubt != nil {
		if r.first {
			r.Began(p, false)
		}
		return false, r.turnRaw(doubt)
	}
	if n == 0 {
		return true, nil
	}
	if r.first {
		r.first = false
		r.Began(p, true)
		r.speaks()
	}
	if claim := r.Claim(&r.req); claim != nil {
		taken, err := r.offer(claim, n)
		if taken || err != nil {
			r.req.Reset()
			return false, err
		}
	}
	err = r.pass(n)
	r.req.Reset()
	return false, err
}

// pass adds the request that r.req holds, n bytes of head, to the batch, and passes on a body that
// does not end in the input.
func (r *Router) pass(n int) error {
	b := &r.batch
	if b.n == len(b.kinds) {
		if err := r.flush(); err != nil {
			return err
		}
	}
	copies := r.copies(&r.req)
	copies.Write(r.in.Bytes()[b.size : b.size+n])
	b.kinds[b.n] = r.req.Kind()
	b.n++
	b.size += n
	rest := r.req.Body().Start()
	if !rest.Done() {
		k, done, doubt := rest.Scan(r.in.Bytes()[b.size:])
		copies.Write(r.in.Bytes()[b.size : b.size+k])
		b.size += k
		if doubt != nil {
			copies.Cut()
			return r.turnRaw(doubt)
		}
		if !done {
			if err := r.passBody(&rest, copies); err != nil {
				copies.Cut()
				return err
			}
		}
	}
	copies.End()
	if !r.req.Persists() {
		return r.turnRaw(nil) // whatever follows is not for us to understand
	}
	if r.req.Switches() {
		r.hold = true
		return r.flush()
	}
	return nil
}

// copies begins the copies of a request that goes to the app.
func (r *Router) copies(head *http1.Request) tap.Copies {
	if r.Copy == nil {
		return nil
	}
	return r.Copy(head)
}

// passBody passes the rest of a body to the app, and to the copies. All of the input belongs to it.
func (r *Router) passBody(rest *http1.Rest, copies tap.Copies) error {
	r.batch.open = r.batch.size > 0
	if err := r.flush(); err != nil {
		return err
	}
	r.mu.Lock()
	app := r.turn
	r.mu.Unlock()
	srcErr, dstErr, doubt := copyBody(app.Duplex, r.Client, &r.in, rest, copies, func() {
		r.mu.Lock()
		app.open = false
		r.mu.Unlock()
	})
	switch {
	case doubt != nil:
		copies.Cut()
		return r.turnRaw(doubt)
	case dstErr != nil:
		return r.appBroke(app)
	case srcErr == nil:
		return nil
	case stream.IsReset(srcErr):
		return errAborted
	case stream.Interrupted(srcErr):
		return errClosing
	}
	return srcErr
}

// flush writes the batch to the app.
func (r *Router) flush() error {
	b := &r.batch
	if b.size == 0 {
		return nil
	}
	app, err := r.appTurn(func(app *peer) {
		app.unanswered.push(b.kinds[:b.n]...)
		app.open = b.open
		r.http = r.http || b.n > 0 && !r.raw.Load()
	})
	if err != nil {
		return err
	}
	_, err = app.Write(r.in.Bytes()[:b.size])
	r.in.Drop(b.size)
	r.Passed(b.n)
	b.size, b.n, b.open = 0, 0, false
	if err != nil {
		return r.appBroke(app)
	}
	return nil
}

// turnRaw makes all that follows the app's.
func (r *Router) turnRaw(doubt error) error {
	if doubt != nil {
		r.Log.Debug("connection is passed to the app unread", "reason", doubt)
	}
	if r.batch.size > 0 {
		r.batch.size = r.in.Len() // what came together leaves together
	}
	if err := r.flush(); err != nil {
		return err
	}
	// Before that, responses of a laptop may be under way, which have to be read to their end.
	if err := r.await(r.idleOrApp); err != nil {
		return err
	}
	r.mu.Lock()
	r.raw.Store(true)
	r.changed.Broadcast()
	r.mu.Unlock()
	return nil
}

func (r *Router) idleOrApp() bool { return r.idle() || r.turn == r.app }

// passRaw passes all that the client sends to the app.
func (r *Router) passRaw() error {
	r.batch = batch{}
	app, err := r.appTurn(func(*peer) {})
	if err != nil {
		return err
	}
	return r.copyClient(app)
}

// passSwitched passes all that the client sends to the laptop that switched protocols.
func (r *Router) passSwitched() error {
	return r.copyClient(r.switchedTo())
}

func (r *Router) copyClient(to *peer) error {
	srcErr, dstErr := stream.Copy(to.Duplex, r.Client, &r.in)
	switch {
	case dstErr != nil:
		return r.appBroke(to)
	case srcErr == io.EOF:
		return r.halfClose()
	case stream.Interrupted(srcErr):
		return errClosing
	}
	return errAborted
}

// halfCloseTunnel passes the client's half-close to the laptop that has the turn, if one has, and
// waits until the turn is over. switched says that the laptop has the whole connection.
func (r *Router) halfCloseTunnel() (switched bool, err error) {
	var told *peer
	for {
		r.mu.Lock()
		turn, busy := r.turn, !r.idle()
		switched = r.switched != nil
		r.gone = true
		r.mu.Unlock()
		if !switched && (!busy || turn.claim == nil) {
			return false, nil
		}
		if turn != told {
			turn.CloseWrite()
			told = turn
		}
		if switched {
			return true, nil
		}
		// Another peer may get the turn meanwhile, if this one fails.
		if err := r.await(func() bool { return r.idle() || r.turn != told || r.switched != nil }); err != nil {
			return false, err
		}
	}
}

// halfClose passes the client's half-close on, to whoever has the turn at once, to the app when the
// turn is over.
func (r *Router) halfClose() error {
	if err := r.flush(); err != nil {
		return err
	}
	if switched, err := r.halfCloseTunnel(); switched || err != nil {
		return err
	}
	if n := r.in.Len(); n > 0 { // an unfinished head
		app, err := r.appTurn(func(*peer) {})
		if err != nil {
			return err
		}
		app.Write(r.in.Bytes())
		r.in.Drop(n)
	}
	r.mu.Lock()
	for r.app != nil && r.app.dialing && !r.aborted {
		r.changed.Wait()
	}
	app := r.app
	over := app != nil && app.ended
	tunnels := slices.Clone(r.tunnels)
	r.mu.Unlock()
	for _, t := range tunnels {
		t.Close()
	}
	if app == nil || app.Duplex == nil {
		return errClosing
	}
	if !over { // else it is closed next
		app.CloseWrite()
	}
	return nil
}
