// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

const (
	// idleFor is how long a line is kept without a copy: less than the time after which servers
	// close idle connections.
	idleFor = time.Second
	// answerWithin is how long the laptop may take to answer, and answerWanted that while others
	// wait for the line.
	answerWithin = 10 * time.Minute
	answerWanted = 5 * time.Second
	// writeWithin is how long it may take none of what is sent.
	writeWithin = 30 * time.Second
)

// line is one tunnel. It takes one copy at a time.
type line struct {
	tap      *Tap
	protocol Protocol
	next     chan *Copy
	ctx      context.Context // ended by the tap
	cancel   context.CancelFunc

	tunnel Tunnel
	wire   wire
	gone   chan struct{} // closed when nothing more is read
}

// wire speaks a protocol.
type wire interface {
	// send sends the copy, and returns when it was answered. again says that the line can take
	// another one.
	send(c *Copy) (again bool)
	// read reads what the laptop sends until it ends.
	read()
}

func newLine(t *Tap, p Protocol) *line {
	l := &line{tap: t, protocol: p, next: make(chan *Copy, 1), gone: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	switch p {
	case HTTP1:
		l.wire = newRequests(l)
	case HTTP2:
		l.wire = newStreams(l)
	default:
		l.wire = raw{l}
	}
	return l
}

// run sends one copy after the other.
func (l *line) run(first *Copy) {
	defer l.recovered()
	defer l.tap.gone(l)
	defer l.cancel()
	if err := l.open(first); err != nil {
		first.lost()
		l.tap.unreachable(err)
		return
	}
	l.tap.opened()
	defer l.tap.closed()
	defer context.AfterFunc(l.ctx, func() { l.tunnel.Reset("wiretap ended") })()
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(l.gone)
		defer l.recovered()
		l.wire.read()
	})
	defer reading.Wait()
	for c := first; c != nil; c = l.another() {
		if !c.begin(func() { go l.tunnel.Reset("the copy was cut") }) {
			continue
		}
		if !l.sent(c) {
			break
		}
	}
	l.tunnel.Close()
}

// sent sends a copy, and reports whether the line can take another one.
func (l *line) sent(c *Copy) (again bool) {
	defer c.lost() // unless it is complete
	defer l.recovered()
	return l.wire.send(c)
}

// recovered keeps a fault in one line from everything else.
func (l *line) recovered() {
	if v := recover(); v != nil {
		l.tap.cfg.Log.Error("a copy was given up because of a fault in the proxy", "wiretap",
			l.tap.cfg.Name, "panic", v)
		if l.tunnel != nil {
			l.tunnel.Reset("fault in the proxy")
		}
	}
}

func (l *line) open(c *Copy) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.tap.cfg.OpenTimeout)
	defer cancel()
	t, err := c.Open(ctx)
	if err != nil {
		return fmt.Errorf("open tunnel: %w", err)
	}
	opened, err := t.Opened(ctx)
	if err == nil && opened.GetResult() != tunnelpb.Opened_OK {
		err = fmt.Errorf("laptop answered %s: %s", opened.GetResult(), opened.GetMessage())
	}
	if err != nil {
		t.Reset("the copy was given up")
		return err
	}
	l.tunnel = t
	return nil
}

// another waits for the next copy; nil ends the line.
func (l *line) another() *Copy {
	if l.protocol == Raw {
		return nil
	}
	select {
	case <-l.gone:
		return nil
	default:
	}
	if c := l.tap.take(l); c != nil {
		return c
	}
	timer := time.NewTimer(idleFor)
	defer timer.Stop()
	select {
	case c := <-l.next:
		return c
	case <-l.gone:
	case <-l.ctx.Done():
	case <-timer.C:
	}
	if l.tap.retire(l) {
		select {
		case c := <-l.next: // given before the tap ended
			c.lost()
		default:
		}
		return nil
	}
	return <-l.next // it was given meanwhile
}

// write sends p, for as long as the laptop takes something now and then.
func (l *line) write(p []byte) error {
	_ = l.tunnel.SetWriteDeadline(time.Now().Add(writeWithin))
	_, err := l.tunnel.Write(p)
	return err
}

// pass sends what there is of a copy as it comes, to its end.
func (l *line) pass(c *Copy) bool {
	for {
		p, _, ended, ok := c.next()
		switch {
		case !ok:
			return false
		case len(p) > 0:
			if l.write(p) != nil {
				return false
			}
			c.wrote(len(p))
		case ended:
			return true
		case !l.wait(c.more):
			return false
		}
	}
}

// wait waits until something is there; false: the line is gone.
func (l *line) wait(something <-chan struct{}) bool {
	select {
	case <-something:
		return true
	case <-l.gone:
		return false
	}
}

// answered waits for the laptop's answer. It gives up when that takes too long.
func (l *line) answered(answer <-chan bool) (again bool) {
	begun := time.Now()
	for patience := answerWanted; ; patience = time.Second {
		timer := time.NewTimer(patience)
		select {
		case again = <-answer:
			timer.Stop()
			return again
		case <-l.gone:
			timer.Stop()
			select {
			case <-answer:
			default:
			}
			return false
		case <-timer.C:
		}
		if l.tap.wanted(l.protocol) || time.Since(begun) > answerWithin {
			return false
		}
	}
}

// raw is the bytes of a connection.
type raw struct{ *line }

func (r raw) send(c *Copy) (again bool) {
	if !r.pass(c) {
		return false
	}
	c.complete()
	r.tunnel.CloseWrite()
	r.answered(nil)
	return false
}

func (r raw) read() { discard(r.tunnel) }

// discard throws away all that comes.
func discard(t Tunnel) {
	d := stream.Of(t, func() {})
	var b stream.Buffer
	defer b.Free()
	for d.Fill(&b) == nil {
		b.Free()
	}
}
