// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"io"
	"slices"

	"sidestep.dev/sidestep/nodeagent/http1"
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
func (c *Conn) requests() error {
	for {
		if c.hold && c.in.Len() > 0 {
			if err := c.await(c.understood); err != nil {
				return err
			}
			c.hold = false
		}
		switch {
		case c.raw.Load():
			return c.passRaw()
		case c.switchedTo() != nil:
			return c.passSwitched()
		}
		more, err := c.next()
		if err == nil && more {
			if err = c.flush(); err == nil && !c.awaits() {
				c.Target.Unread(c.in.Bytes(), errBusy)
				err = c.turnRaw(errBusy)
			} else if err == nil {
				err = c.fill()
			}
		}
		if err == io.EOF {
			return c.halfClose()
		}
		if err != nil {
			return err
		}
	}
}

// understood reports whether what stands behind a request that may end HTTP can be read. mu is
// held.
func (c *Conn) understood() bool { return c.idle() || c.raw.Load() || c.switched != nil }

func (c *Conn) switchedTo() *peer {
	if c.ex == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.switched
}

// next takes one request from the input, as far as it is there. more says that it needs more input
// first.
func (c *Conn) next() (more bool, err error) {
	p := c.in.Bytes()[c.batch.size:]
	if len(p) == 0 {
		return true, nil
	}
	if c.first && c.HTTP2 != nil {
		switch n := min(len(p), len(preface)); {
		case string(p[:n]) != preface[:n]:
		case n < len(preface):
			return true, nil
		default:
			c.Target.Began(p, true)
			return false, c.handOver()
		}
	}
	if c.first && !http1.MayBeRequest(p) {
		c.Target.Began(p, false)
		return false, c.turnRaw(nil)
	}
	n, doubt := c.req.Parse(p)
	if doubt != nil {
		c.Target.Unread(p, doubt)
		if c.first {
			c.Target.Began(p, false)
		}
		return false, c.turnRaw(doubt)
	}
	if n == 0 {
		return true, nil
	}
	if c.first {
		c.first = false
		c.Target.Began(p, true)
		c.speaks()
	}
	if intercept := c.Target.Match(&c.req); intercept != nil {
		taken, err := c.offer(intercept, n)
		if taken || err != nil {
			c.req.Reset()
			return false, err
		}
	}
	err = c.pass(n)
	c.req.Reset()
	return false, err
}

// pass adds the request that c.req holds, n bytes of head, to the batch, and passes on a body that
// does not end in the input.
func (c *Conn) pass(n int) error {
	b := &c.batch
	if b.n == len(b.kinds) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	copies := c.Target.Copy(&c.req)
	copies.Write(c.in.Bytes()[b.size : b.size+n])
	b.kinds[b.n] = c.req.Kind()
	b.n++
	b.size += n
	rest := c.req.Body().Start()
	if !rest.Done() {
		k, done, doubt := rest.Scan(c.in.Bytes()[b.size:])
		copies.Write(c.in.Bytes()[b.size : b.size+k])
		b.size += k
		if doubt != nil {
			copies.Cut()
			return c.turnRaw(doubt)
		}
		if !done {
			if err := c.passBody(&rest, copies); err != nil {
				copies.Cut()
				return err
			}
		}
	}
	copies.End()
	if !c.req.Persists() {
		return c.turnRaw(nil) // whatever follows is not for us to understand
	}
	if c.req.Switches() {
		c.hold = true
		return c.flush()
	}
	return nil
}

// passBody passes the rest of a body to the app, and to the copies. All of the input belongs to it.
func (c *Conn) passBody(rest *http1.Rest, copies tap.Copies) error {
	c.batch.open = c.batch.size > 0
	if err := c.flush(); err != nil {
		return err
	}
	c.mu.Lock()
	app := c.turn
	c.mu.Unlock()
	srcErr, dstErr, doubt := copyBody(app.Duplex, c.Client, &c.in, rest, copies, func() {
		c.mu.Lock()
		app.open = false
		c.mu.Unlock()
	})
	switch {
	case doubt != nil:
		copies.Cut()
		return c.turnRaw(doubt)
	case dstErr != nil:
		return c.appBroke(app)
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
func (c *Conn) flush() error {
	b := &c.batch
	if b.size == 0 {
		return nil
	}
	app, err := c.appTurn(func(app *peer) {
		app.unanswered.push(b.kinds[:b.n]...)
		app.open = b.open
		c.http = c.http || b.n > 0 && !c.raw.Load()
	})
	if err != nil {
		return err
	}
	_, err = app.Write(c.in.Bytes()[:b.size])
	c.in.Drop(b.size)
	c.Target.Passed(b.n)
	b.size, b.n, b.open = 0, 0, false
	if err != nil {
		return c.appBroke(app)
	}
	return nil
}

// turnRaw makes all that follows the app's.
func (c *Conn) turnRaw(doubt error) error {
	if doubt != nil {
		c.doubt = doubt
		c.Log.Debug("connection is passed to the app unread", "reason", doubt)
	}
	if c.batch.size > 0 {
		c.batch.size = c.in.Len() // what came together leaves together
	}
	if err := c.flush(); err != nil {
		return err
	}
	// Before that, responses of a laptop may be under way, which have to be read to their end.
	if err := c.await(c.idleOrApp); err != nil {
		return err
	}
	c.mu.Lock()
	c.raw.Store(true)
	c.changed.Broadcast()
	c.mu.Unlock()
	return nil
}

func (c *Conn) idleOrApp() bool { return c.idle() || c.turn == c.app }

// passRaw passes all that the client sends to the app.
func (c *Conn) passRaw() error {
	if err := c.unread(); err == io.EOF {
		return c.halfClose()
	} else if err != nil {
		return err
	}
	c.batch = batch{}
	app, err := c.appTurn(func(*peer) {})
	if err != nil {
		return err
	}
	return c.copyClient(app)
}

// unread tells the target of the next request if all passes unread because of the app. Why the client's
// own requests do was told before.
func (c *Conn) unread() error {
	c.mu.Lock()
	doubt := c.appDoubt
	c.mu.Unlock()
	if doubt == nil || c.doubt != nil {
		return nil
	}
	c.doubt = doubt
	if c.in.Len() == c.batch.size {
		if err := c.fill(); err != nil {
			return err
		}
	}
	if p := c.in.Bytes()[c.batch.size:]; http1.MayBeRequest(p) {
		c.Target.Unread(p, doubt)
	}
	return nil
}

// passSwitched passes all that the client sends to the laptop that switched protocols.
func (c *Conn) passSwitched() error {
	return c.copyClient(c.switchedTo())
}

func (c *Conn) copyClient(to *peer) error {
	c.awaitsNone()
	srcErr, dstErr := stream.Copy(to.Duplex, c.Client, &c.in)
	switch {
	case dstErr != nil:
		return c.appBroke(to)
	case srcErr == io.EOF:
		return c.halfClose()
	case stream.Interrupted(srcErr):
		return errClosing
	}
	return errAborted
}

// halfCloseTunnel passes the client's half-close to the laptop that has the turn, if one has, and
// waits until the turn is over. switched says that the laptop has the whole connection.
func (c *Conn) halfCloseTunnel() (switched bool, err error) {
	var told *peer
	for {
		c.mu.Lock()
		turn, busy := c.turn, !c.idle()
		switched = c.switched != nil
		c.gone = true
		c.mu.Unlock()
		if !switched && (!busy || turn.intercept == nil) {
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
		if err := c.await(func() bool { return c.idle() || c.turn != told || c.switched != nil }); err != nil {
			return false, err
		}
	}
}

// halfClose passes the client's half-close on, to whoever has the turn at once, to the app when the
// turn is over.
func (c *Conn) halfClose() error {
	if err := c.flush(); err != nil {
		return err
	}
	if switched, err := c.halfCloseTunnel(); switched || err != nil {
		return err
	}
	if n := c.in.Len(); n > 0 { // an unfinished head
		app, err := c.appTurn(func(*peer) {})
		if err != nil {
			return err
		}
		app.Write(c.in.Bytes())
		c.in.Drop(n)
	}
	c.mu.Lock()
	for c.app != nil && c.app.dialing && !c.aborted {
		c.changed.Wait()
	}
	app := c.app
	over := app != nil && app.ended
	tunnels := slices.Clone(c.tunnels)
	c.mu.Unlock()
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
