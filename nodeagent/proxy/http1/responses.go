// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"slices"

	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// peer is who answers requests: the app, or a laptop at the other end of a tunnel.
type peer struct {
	stream.Duplex // nil while dialing
	c             *Conn
	intercept     divert.Intercept // of a tunnel; nil: the app
	untrack       func()
	ex            *exchange // of a tunnel, the last one; with Conn.mu held

	// Of the goroutine that reads the responses.
	buf      stream.Buffer
	resp     http1.Response
	out      int  // bytes at the front of buf that are to be written
	answered int  // requests that are answered with them
	last     bool // the last of these answers ends the connection
	started  bool // the client has seen some of the final response to the oldest request
	account  budget.Account

	// With Conn.mu held.
	unanswered queue
	open       bool // the last request is not complete
	empty      bool // and nothing of its body was sent, for which the client may be waiting
	final      bool // the client means to send no more after it
	dialing    bool
	wanted     bool // somebody waits for the dial
	ended      bool
	failed     bool // ended without an answer
	failure    error
	opaque     bool // the answer cannot be framed
	retired    bool // to be closed when it is answered
}

// respond passes the peer's responses to the client until the peer ends.
func (p *peer) respond() {
	defer p.buf.Free()
	p.account.Budget = p.c.Budget
	defer p.account.Set(0)
	p.resp.Reset()
	for {
		if p.intercept == nil && p.takenOver(nil) {
			return
		}
		if p.intercept == nil && p.c.raw.Load() {
			p.copyRaw()
			return
		}
		more, ok := p.next()
		if !ok {
			return
		}
		if !more {
			continue
		}
		if !p.write() {
			return
		}
		if !p.awaits() {
			continue
		}
		if err := p.Fill(&p.buf); err != nil {
			if p.intercept != nil || !p.takenOver(err) {
				p.peerEnded(err)
			}
			return
		}
	}
}

// awaits charges the peer for a head that is not complete. Without room for it, an app's connection
// turns raw.
func (p *peer) awaits() bool {
	n := 0
	if p.buf.Len() > 0 {
		n = p.buf.Cost()
	}
	if p.account.Set(n) {
		return true
	}
	if p.intercept != nil {
		p.account.Owe(n)
		return true
	}
	p.doubtful(errBusy)
	return false
}

// next takes one response from the buffer, as far as it is there. more says that it needs more
// bytes first, ok that there is anything more to do.
func (p *peer) next() (more, ok bool) {
	b := p.buf.Bytes()[p.out:]
	if len(b) == 0 {
		return true, true
	}
	p.c.mu.Lock()
	expected := p.unanswered.len() > p.answered
	var kind http1.RequestKind
	if expected {
		kind = p.unanswered.at(p.answered)
	}
	p.c.mu.Unlock()
	if !expected {
		return false, p.unexpected()
	}
	n, doubt := p.resp.Parse(b)
	if doubt != nil {
		return false, p.doubtful(doubt)
	}
	if n == 0 {
		return true, true
	}
	if p.resp.Interim() {
		if _, doubt := p.resp.Body(kind); doubt != nil {
			return false, p.doubtful(doubt)
		}
		p.out += n
		p.resp.Reset()
		return false, true
	}
	body, doubt := p.resp.Body(kind)
	switch {
	case doubt != nil:
		return false, p.doubtful(doubt)
	case body.Kind == http1.UntilClose:
		return false, p.untilClose()
	case body.Kind == http1.Tunnelled:
		return false, p.tunnelled()
	}
	p.begins()
	p.last = !p.resp.Persists()
	p.resp.Reset()
	p.out += n
	return false, p.body(body.Start())
}

// begins notes that the client gets some of the final response.
func (p *peer) begins() {
	p.started = true
	if p.intercept != nil {
		p.intercept.Answered()
	}
}

// body passes a response's body on; what is in the buffer stays there if it is all.
func (p *peer) body(rest http1.Rest) (ok bool) {
	if !rest.Done() {
		n, done, doubt := rest.Scan(p.buf.Bytes()[p.out:])
		p.out += n
		if doubt != nil {
			return p.doubtful(doubt)
		}
		if !done {
			if !p.write() {
				return false
			}
			srcErr, dstErr, doubt := copyBody(p.c.Client, p.Duplex, &p.buf, &rest, nil, nil)
			switch {
			case dstErr != nil:
				p.clientBroke()
				return false
			case srcErr != nil:
				p.peerEnded(srcErr)
				return false
			case doubt != nil:
				return p.doubtful(doubt)
			}
		}
	}
	p.answered++
	if p.last || p.intercept != nil || p.out == 0 {
		return p.write()
	}
	return true
}

// write writes what is to be written, and counts as answered the requests that are.
func (p *peer) write() bool {
	if p.out > 0 {
		err := p.writeOut(p.last)
		p.buf.Drop(p.out)
		p.out = 0
		if err != nil {
			p.clientBroke()
			return false
		}
	}
	if p.answered == 0 {
		return true
	}
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	p.unanswered.pop(p.answered)
	p.answered, p.started = 0, false
	if p.intercept != nil {
		p.answeredByLaptop()
	} else if p.last || p.open && p.unanswered.len() == 0 {
		// Either the app closes now, or it answered before it had the whole request, and only it
		// knows what it makes of the rest.
		c.raw.Store(true)
	}
	c.changed.Broadcast()
	return true
}

// writeOut writes what is to be written. If it is the last of the app, which has ended its stream
// already, that end goes with it, for copyRaw goes on.
func (p *peer) writeOut(last bool) error {
	b := p.buf.Bytes()[:p.out]
	if last && p.intercept == nil {
		app, ok := p.Duplex.(interface{ Ended() bool })
		if client, can := p.c.Client.(interface{ WriteLast(p []byte) (int, error) }); ok && can && app.Ended() {
			_, err := client.WriteLast(b)
			return err
		}
	}
	_, err := p.c.Client.Write(b)
	return err
}

// answeredByLaptop decides whether the client's connection and the tunnel can go on. mu is held.
func (p *peer) answeredByLaptop() {
	p.c.forget(p.ex)
	switch {
	case p.last || p.final || p.open && p.empty:
		// The laptop's server would close now. A client that has its answer and was still waiting
		// with its body may or may not send it.
		p.c.conclude()
	case p.retired && !p.open:
		p.Close()
	}
}

// unexpected deals with bytes that answer no request.
func (p *peer) unexpected() (ok bool) {
	if !p.write() {
		return false
	}
	if p.intercept == nil {
		if p.unsolicited() {
			return true
		}
		p.Close()
		return false
	}
	p.Reset()
	p.peerEnded(stream.ErrReset)
	return false
}

// doubtful deals with a response that cannot be framed.
func (p *peer) doubtful(doubt error) (ok bool) {
	c := p.c
	c.Log.Debug("response is passed on unread", "reason", doubt, "laptop", p.intercept != nil)
	if p.intercept != nil {
		if p.started { // in the body: how much of it there is nobody can say
			p.Reset()
			c.abort()
			return false
		}
		if p.saysTLS() {
			p.Reset()
			p.peerEnded(errTLS)
			return false
		}
		c.mu.Lock()
		p.opaque = true
		c.mu.Unlock()
		return p.untilClose()
	}
	c.mu.Lock()
	if c.appDoubt = errAppNotHTTP; divert.ReasonOf(doubt) != divert.Other {
		c.appDoubt = doubt
	}
	c.raw.Store(true)
	c.changed.Broadcast()
	c.mu.Unlock()
	return true
}

// saysTLS reports whether what is there instead of an answer is an alert of TLS (RFC 8446 §6).
func (p *peer) saysTLS() bool {
	b := p.buf.Bytes()[p.out:]
	return b[0] == 0x15 && (len(b) < 2 || b[1] == 3)
}

// untilClose passes on a response that ends with the connection.
func (p *peer) untilClose() (ok bool) {
	c := p.c
	if p.intercept == nil {
		c.mu.Lock()
		c.raw.Store(true)
		c.changed.Broadcast()
		c.mu.Unlock()
		return true
	}
	p.begins()
	c.mu.Lock()
	c.changed.Broadcast()
	c.mu.Unlock()
	srcErr, dstErr := stream.Copy(c.Client, p.Duplex, &p.buf)
	if dstErr != nil {
		p.clientBroke()
		return false
	}
	if stream.IsReset(srcErr) {
		p.peerEnded(srcErr)
		return false
	}
	c.mu.Lock()
	p.unanswered.pop(p.unanswered.len())
	c.conclude()
	c.mu.Unlock()
	p.peerEnded(srcErr)
	return false
}

// tunnelled passes on the response that ends HTTP on the connection, and all that follows.
func (p *peer) tunnelled() (ok bool) {
	c := p.c
	if p.intercept == nil {
		c.mu.Lock()
		c.http = false
		c.raw.Store(true)
		c.changed.Broadcast()
		c.mu.Unlock()
		return true
	}
	p.begins()
	c.mu.Lock()
	c.switched = p
	app := c.app
	c.app = nil
	others := slices.DeleteFunc(slices.Clone(c.tunnels), func(t *peer) bool { return t == p })
	c.changed.Broadcast()
	c.mu.Unlock()
	if app != nil && app.Duplex != nil {
		app.Close() // not needed any more
	}
	for _, t := range others {
		t.Close()
	}
	p.copyRaw()
	return false
}

// copyRaw passes all that the peer sends to the client.
func (p *peer) copyRaw() {
	if p.buf.Len() == 0 { // it may all come at once, with its end
		if err := p.Fill(&p.buf); err != nil {
			p.peerEnded(err)
			return
		}
	}
	if p.out = p.buf.Len(); p.out < stream.Size { // what is more may be spliced
		if p.writeOut(true) != nil {
			p.clientBroke()
			return
		}
		p.buf.Drop(p.out)
	}
	p.out = 0
	srcErr, dstErr := stream.Copy(p.c.Client, p.Duplex, &p.buf)
	if dstErr != nil {
		p.clientBroke()
		return
	}
	p.peerEnded(srcErr)
}

// clientBroke is for a client that takes no more.
func (p *peer) clientBroke() {
	p.c.abort()
	p.peerEnded(stream.ErrReset)
}

func (p *peer) peerEnded(err error) {
	if p.intercept != nil {
		p.tunnelEnded(err)
		return
	}
	p.appEnded(err)
}

// copyBody passes a body on, and to the copies. last, unless it is nil, is called before the piece
// that ends it is written. After a doubt, the bytes that were not passed on are in b.
func copyBody(dst, src stream.Duplex, b *stream.Buffer, rest *http1.Rest, copies tap.Copies,
	last func()) (srcErr, dstErr, doubt error) {
	for !rest.Done() {
		if b.Len() == 0 {
			// the last byte is left for the end to be seen
			if n := rest.Data() - 1; n >= stream.Worth && copies.Over() {
				srcErr, dstErr = stream.CopyN(dst, src, b, n)
				if srcErr != nil || dstErr != nil {
					return srcErr, dstErr, nil
				}
				rest.Skip(n)
				continue
			}
			if rest.Data() >= stream.Worth {
				b.Grow()
			}
			if srcErr = src.Fill(b); srcErr != nil {
				return srcErr, nil, nil
			}
		}
		n, done, doubt := rest.Scan(b.Bytes())
		if doubt != nil {
			return nil, nil, doubt
		}
		if done && last != nil {
			last()
		}
		if _, dstErr = dst.Write(b.Bytes()[:n]); dstErr != nil {
			return nil, dstErr, nil
		}
		copies.Write(b.Bytes()[:n])
		b.Drop(n)
	}
	return nil, nil, nil
}
