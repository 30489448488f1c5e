// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"slices"
	"sync"

	"golang.org/x/net/http2/hpack"
)

const (
	// maxHeld bytes of a copy may wait to be sent.
	maxHeld = 4 << 20
	// window is how much of what was sent may not have arrived yet: as much as a tunnel's window
	// has room for. It counts as on its way until the laptop has answered; of a connection whose
	// answers nobody understands only rawWindow does.
	window    = 4 << 20
	rawWindow = 64 << 10
)

// Copy is the copy of one request, or one connection. One goroutine writes into it. A nil Copy
// takes nothing.
type Copy struct {
	Request
	tap  *Tap
	more chan struct{} // has a value when there may be something new for the line

	mu    sync.Mutex
	buf   []byte
	tail  []hpack.HeaderField
	held  int // bytes that count in the budget
	sent  int // of these, those that may be on their way, up to the window
	ended bool
	done  bool // nothing more will be sent
	begun bool // the laptop was sent something
	abort func()
}

// hold takes n bytes of the budget. mu is held, or nobody else knows the copy.
func (c *Copy) hold(n int) bool {
	if c.held-c.sent+n > maxHeld || !c.tap.cfg.Budget.take(n) {
		return false
	}
	c.held += n
	return true
}

// Write adds p, or ends the copy if there is no room for it. It never waits for the laptop.
func (c *Copy) Write(p []byte) {
	if c == nil || len(p) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.done || c.ended:
	case !c.hold(len(p)):
		c.fail()
	default:
		c.buf = append(c.buf, p...)
		c.signal()
	}
}

// Trailers adds the fields behind the body of a request of HTTP/2, and ends the copy.
func (c *Copy) Trailers(fields []hpack.HeaderField) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done && !c.ended {
		c.tail, c.ended = slices.Clone(fields), true
		c.signal()
	}
}

// End says that the copy is complete.
func (c *Copy) End() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.ended = true
		c.signal()
	}
}

// Cut says that there is no more of what is copied, although it is not complete.
func (c *Copy) Cut() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.fail()
	}
}

// Over reports whether nothing more is taken.
func (c *Copy) Over() bool { return c == nil || c.over() }

func (c *Copy) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

func (c *Copy) signal() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// fail ends a copy that was not sent whole. mu is held.
func (c *Copy) fail() {
	if c.done {
		return
	}
	if c.begun {
		c.tap.cut.Add(1)
		c.tap.cfg.Budget.cut.Add(1)
	} else {
		c.tap.drop(1)
	}
	c.close()
	if c.abort != nil {
		c.abort()
	}
}

// close lets go of what is held. mu is held.
func (c *Copy) close() {
	c.done = true
	c.tap.cfg.Budget.give(c.held)
	c.buf, c.tail, c.held, c.sent = nil, nil, 0, 0
	c.signal()
}

// lost is for a line that could not send the copy to its end.
func (c *Copy) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail()
}

// complete is for a copy that the laptop has, and has answered.
func (c *Copy) complete() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.close()
	}
}

// begin says that the laptop is about to be sent something. abort is called if the copy fails.
func (c *Copy) begin(abort func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return false
	}
	c.begun, c.abort = true, abort
	c.tap.copied.Add(1)
	c.tap.cfg.Budget.copied.Add(1)
	return true
}

// next takes what is there to be sent. ended says that it is all; ok is false when the copy has
// failed.
func (c *Copy) next() (p []byte, tail []hpack.HeaderField, ended, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, c.buf = c.buf, nil
	return p, c.tail, c.ended, !c.done
}

// wrote says that n bytes were sent.
func (c *Copy) wrote(n int) {
	most := window
	if c.Protocol == Raw {
		most = rawWindow
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return
	}
	c.sent += n
	if more := c.sent - most; more > 0 {
		c.sent -= more
		c.held -= more
		c.tap.cfg.Budget.give(more)
	}
}
