// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
)

const (
	// maxDiverted streams of one connection may be with laptops. More are refused.
	maxDiverted = 250
	// controlBacklog is how much may wait for a peer that does not read, before what makes it more
	// is not read either: answers to PING, grants, refusals.
	controlBacklog = 64 << 10
	// streamCost is what a diverted stream holds besides its bytes.
	streamCost = 1 << 10
	// spared is what a mixed connection may hold when the budget is used up.
	spared = 32 << 10
	// maxAnswers bytes of laptops' answers may wait for the client.
	maxAnswers = tunnelWindow + 256<<10

	// A client may reset resetBurst streams before they are answered, and resetRate more each
	// second. Each answer allows one more. A client with a deadline resets what a stopped laptop
	// does not answer, so the bound is above what such clients do.
	resetBurst = 1000
	resetRate  = 100
)

// errBusy is why a request is not offered to a laptop.
var errBusy = divert.New(divert.Busy, "the node agent holds too many bytes for other requests")

// resets counts the streams that a client may still reset before they are answered.
type resets struct {
	spent float64
	last  time.Time
}

// take counts one, and reports whether it was allowed.
func (r *resets) take(now time.Time) bool {
	r.spent = max(0, r.spent-now.Sub(r.last).Seconds()*resetRate)
	r.last = now
	r.spent++
	return r.spent <= resetBurst
}

func (r *resets) answered() { r.spent = max(0, r.spent-1) }

// memory is what the connection holds for its peers.
func (c *Conn) memory() int {
	n := c.waits[0] + c.waits[1] + c.up.inUse + c.down.inUse
	if !c.mixed {
		return n
	}
	n += c.buffered + c.kept + c.answers + c.up.waiting + c.down.waiting +
		cap(c.toCli.pending) + cap(c.toApp.pending)
	for _, l := range c.laptops {
		n += cap(l.out)
	}
	return n
}

// charge charges the connection for what it holds. Without room for it the connection turns raw; one
// that cannot, and holds more than a little, ends.
func (c *Conn) charge() error {
	if c.over {
		return nil
	}
	n := c.memory()
	if c.account.Set(n) {
		return nil
	}
	if c.mixed {
		c.account.Owe(n)
		if n <= spared {
			return nil
		}
	}
	return doubtMemory
}

// limit is the bound that a doubt is about.
func (d doubt) limit() (l budget.Limit, ok bool) {
	switch d {
	case doubtTooLong, doubtMany:
		return budget.Frames, true
	case doubtResets:
		return budget.Resets, true
	}
	return 0, false
}

// awaitReader waits while too much is to be written to a peer that makes it more and does not read:
// nothing more of what it sends is read then. Data does not count, for which others wait.
func (c *Conn) awaitReader(w *writer) {
	for w.echo > controlBacklog && c.worthWaiting(w) {
		w.changed.Wait()
	}
}

// awaitRoom waits while too much is to be written to w, for those who have no part in writing it. A
// frame that somebody else has begun is waited for, too.
func (c *Conn) awaitRoom(w *writer) {
	for len(w.pending) > backlog && c.worthWaiting(w) {
		w.changed.Wait()
	}
}

func (c *Conn) worthWaiting(w *writer) bool {
	return w.err == nil && !c.closing && !c.aborted && !c.over && !c.appDone
}

// wake wakes all who wait for something that cannot happen any more.
func (c *Conn) wake() {
	c.changed.Broadcast()
	c.toApp.changed.Broadcast()
	c.toCli.changed.Broadcast()
}
