// SPDX-License-Identifier: Apache-2.0

// Package tap brings laptops copies of what apps get.
//
// Whoever has something to be copied never waits. A Copy keeps the bytes until a line, which is a
// tunnel to the laptop with goroutines of its own, has sent them; where there is no room for them
// the copy ends there and then, and is counted. What the laptop answers is read, for the end of an
// answer frees the line for the next copy, and thrown away.
package tap

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// Bounds of one tap.
const (
	// maxLines is how many requests, or connections, the laptop gets at a time.
	maxLines = 32
	// maxRawLines is that for connections whose bytes nobody looks into.
	maxRawLines = 256
	// maxWaiting is how many requests may wait for a line.
	maxWaiting = 256
	// quietFor is how long nothing is copied after the laptop could not be reached.
	quietFor = 500 * time.Millisecond
)

// Tunnel is a *tunnel.Conn.
type Tunnel interface {
	stream.Conn
	SetWriteDeadline(t time.Time) error
	Opened(ctx context.Context) (*tunnelpb.Opened, error)
	Reset(reason string)
}

// Protocol is what a copy is made of.
type Protocol uint8

// The protocols. Raw is the bytes of a connection.
const (
	HTTP1 Protocol = iota
	HTTP2
	Raw
)

// Request says what is to be copied.
type Request struct {
	Protocol Protocol
	Kind     http1.RequestKind   // of HTTP1
	Last     bool                // of HTTP1: no other request follows on its connection
	Fields   []hpack.HeaderField // of HTTP2, the request's
	// Open opens a tunnel to the laptop, if none is idle.
	Open func(ctx context.Context) (Tunnel, error)
}

// Config is what a Tap works with.
type Config struct {
	Name   string // for the log
	Budget *Budget
	// OpenTimeout is how long a laptop may take to answer OPEN.
	OpenTimeout time.Duration
	Log         *slog.Logger
}

// Counts are of requests, or of connections in which nobody looks for requests.
type Counts struct {
	Copied  uint64 // of which the laptop was sent something
	Cut     uint64 // of these, those that it was not sent to the end
	Dropped uint64 // of which it was sent nothing
}

// Tap is one laptop's wish for copies.
type Tap struct {
	cfg                  Config
	copied, cut, dropped atomic.Uint64
	quietUntil           atomic.Int64 // Unix nanoseconds

	mu      sync.Mutex
	ended   bool
	lines   map[*line]struct{}
	open    int // lines that the laptop has taken
	idle    [Raw][]*line
	waiting [Raw][]*Copy
}

// New makes a Tap.
func New(cfg Config) *Tap { return &Tap{cfg: cfg, lines: map[*line]struct{}{}} }

// Counts gives the counters.
func (t *Tap) Counts() Counts {
	return Counts{Copied: t.copied.Load(), Cut: t.cut.Load(), Dropped: t.dropped.Load()}
}

// Begin begins a copy, or counts that there is no room for one and gives nil. The caller ends it by
// End or Cut.
func (t *Tap) Begin(r Request) *Copy {
	if time.Now().UnixNano() < t.quietUntil.Load() || t.cfg.Budget.full() {
		t.drop(1)
		return nil
	}
	c := &Copy{Request: r, tap: t, more: make(chan struct{}, 1)}
	if r.Protocol == HTTP2 {
		size := 0
		for i := range r.Fields {
			size += int(r.Fields[i].Size())
		}
		if !c.hold(size) {
			t.drop(1)
			return nil
		}
	}
	if !t.place(c) {
		c.lost()
		return nil
	}
	return c
}

// place finds a line for the copy, or has it wait for one.
func (t *Tap) place(c *Copy) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	most := maxRawLines
	if p := c.Protocol; p != Raw {
		most = maxLines
		if n := len(t.idle[p]); n > 0 {
			l := t.idle[p][n-1]
			t.idle[p] = t.idle[p][:n-1]
			l.next <- c // it waits for nothing else
			return true
		}
	}
	if len(t.lines) < most && t.cfg.Budget.addLine() {
		l := newLine(t, c.Protocol)
		t.lines[l] = struct{}{}
		go l.run(c)
		return true
	}
	if c.Protocol == Raw || len(t.waiting[c.Protocol]) >= maxWaiting {
		return false
	}
	t.waiting[c.Protocol] = append(t.waiting[c.Protocol], c)
	return true
}

// take gives a line the next copy; without one the line is idle until something comes through its
// channel.
func (t *Tap) take(l *line) *Copy {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.waitingFor(l.protocol); c != nil {
		return c
	}
	if !t.ended {
		t.idle[l.protocol] = append(t.idle[l.protocol], l)
	}
	return nil
}

// waitingFor takes out the copy that has waited longest. mu is held.
func (t *Tap) waitingFor(p Protocol) *Copy {
	if p == Raw {
		return nil
	}
	for len(t.waiting[p]) > 0 {
		c := t.waiting[p][0]
		t.waiting[p][0] = nil
		if t.waiting[p] = t.waiting[p][1:]; len(t.waiting[p]) == 0 {
			t.waiting[p] = nil
		}
		if !c.over() {
			return c
		}
	}
	return nil
}

// wanted says whether somebody waits for a line.
func (t *Tap) wanted(p Protocol) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p == Raw {
		return len(t.lines) >= maxRawLines
	}
	return len(t.waiting[p]) > 0
}

// retire takes an idle line out, unless it has just been given a copy.
func (t *Tap) retire(l *line) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.idle[l.protocol], l)
	if i < 0 {
		return t.ended
	}
	t.idle[l.protocol] = slices.Delete(t.idle[l.protocol], i, i+1)
	return true
}

// gone is for a line that has ended. Whoever still waits gets another.
func (t *Tap) gone(l *line) {
	t.cfg.Budget.removeLine()
	t.mu.Lock()
	delete(t.lines, l)
	var c *Copy
	if !t.ended {
		c = t.waitingFor(l.protocol)
	}
	t.mu.Unlock()
	if c != nil && !t.place(c) {
		c.lost()
	}
}

// opened is for a line that the laptop has taken, closed for its end.
func (t *Tap) opened() { t.countOpen(1) }
func (t *Tap) closed() { t.countOpen(-1) }

func (t *Tap) countOpen(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open += n
}

// unreachable lets the laptop rest if nobody is there to take copies, rather than just not that
// many.
func (t *Tap) unreachable(why error) {
	t.mu.Lock()
	some := t.open > 0
	t.mu.Unlock()
	if some {
		return
	}
	t.quietUntil.Store(time.Now().Add(quietFor).UnixNano())
	t.cfg.Log.Debug("nothing is copied for a while, since the laptop cannot take it", "wiretap",
		t.cfg.Name, "error", why)
	t.mu.Lock()
	var dropped []*Copy
	for p := range t.waiting {
		dropped = append(dropped, t.waiting[p]...)
		t.waiting[p] = nil
	}
	t.mu.Unlock()
	for _, c := range dropped {
		c.lost()
	}
}

// End ends the tap and all its copies.
func (t *Tap) End() {
	t.mu.Lock()
	t.ended = true
	lines := make([]*line, 0, len(t.lines))
	for l := range t.lines {
		lines = append(lines, l)
	}
	var dropped []*Copy
	for p := range t.waiting {
		dropped = append(dropped, t.waiting[p]...)
		t.waiting[p], t.idle[p] = nil, nil
	}
	t.mu.Unlock()
	for _, c := range dropped {
		c.lost()
	}
	for _, l := range lines {
		l.cancel()
	}
}

func (t *Tap) drop(n uint64) {
	t.dropped.Add(n)
	t.cfg.Budget.dropped.Add(n)
}
