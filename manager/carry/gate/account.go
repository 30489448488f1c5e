// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"sync/atomic"
)

const (
	// callMass is what a call takes by itself: goroutines, contexts and metadata.
	callMass = 16 << 10
	// frameMass is what grpc-go keeps of a frame besides its data.
	frameMass = 64
	// maxOpen bounds what is known of one connection's streams. tunnel.ServerOptions has fewer at a time.
	maxOpen = 16 << 10
)

// holder is a peer, with what its calls hold.
type holder struct {
	name  string
	held  atomic.Int64
	calls atomic.Int64
	conns []*Conn // under Gate.mu, the oldest first
}

// account is what the calls of one connection hold.
type account struct {
	gate *Gate

	mu      sync.Mutex
	holder  *holder
	streams map[uint32]*held
	latest  uint32
	closed  bool
}

// held is what a stream holds.
type held struct {
	call     int64 // callMass once there is a call
	in, mass int64 // bytes that came and no call has read, and the memory of them
	out      int64 // bytes that a call has sent and the connection has not taken
	cancel   context.CancelFunc
	ending   bool // it is not counted any more
}

func (h *held) data() int64 { return h.mass + max(h.out, 0) }
func (h *held) all() int64  { return h.call + h.data() }

// mass is the memory that grpc-go takes for the data of a frame: its buffers have sizes of their own.
func mass(length int) int64 {
	n := int64(length)
	switch {
	case n <= 1<<10:
	case n <= 4<<10:
		n = 4 << 10
	case n <= 16<<10:
		n = 16 << 10
	}
	return n + frameMass
}

// change counts what a change of a stream makes of it. It is called with mu held.
func (a *account) change(h *held, by func()) {
	if h == nil || h.ending || a.closed {
		return
	}
	before := h.all()
	by()
	a.add(h.all() - before)
}

func (a *account) add(n int64) {
	a.holder.held.Add(n)
	a.gate.heldInAll.Add(n)
}

// open notes a stream.
func (a *account) open(id uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || id <= a.latest { // trailers
		return
	}
	a.latest = id
	if len(a.streams) >= maxOpen { // some have been refused, which is not seen here
		for old, h := range a.streams {
			if h.call == 0 && old+2*maxOpen < id {
				a.drop(old, h)
			}
		}
	}
	a.streams[id] = &held{}
}

// drop is called with mu held.
func (a *account) drop(id uint32, h *held) {
	delete(a.streams, id)
	if h.call > 0 {
		a.holder.calls.Add(-1)
	}
	if !h.ending {
		a.add(-h.all())
	}
}

// arrived counts data that came on a stream.
func (a *account) arrived(id uint32, length int) {
	a.mu.Lock()
	h := a.streams[id]
	a.change(h, func() { h.in += int64(length); h.mass += mass(length) })
	a.mu.Unlock()
	a.gate.relieve()
}

// written counts data that the connection has taken.
func (a *account) written(id uint32, length int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.streams[id]
	a.change(h, func() { h.out -= int64(length) })
}

// begin notes that a stream's call begins.
func (a *account) begin(id uint32, cancel context.CancelFunc) *held {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.streams[id]
	if h == nil {
		h = &held{}
		a.streams[id] = h
	}
	h.cancel = cancel
	if a.closed {
		h.ending = true
	}
	if h.ending { // its peer held too much before, or has gone
		cancel()
	}
	a.change(h, func() { h.call = callMass })
	h.call = callMass
	a.holder.calls.Add(1)
	return h
}

func (a *account) end(id uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.streams[id]; h != nil {
		a.drop(id, h)
	}
}

// read counts what a call has read.
func (a *account) read(h *held, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.change(h, func() {
		if h.in <= n {
			h.in, h.mass = 0, 0
			return
		}
		h.mass -= h.mass * n / h.in
		h.in -= n
	})
}

// sends counts what a call is about to send.
func (a *account) sends(h *held, n int64) {
	a.mu.Lock()
	a.change(h, func() { h.out += n })
	a.mu.Unlock()
	a.gate.relieve()
}

// close counts the connection no longer. What its calls hold they give back when they notice.
func (a *account) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, h := range a.streams {
		a.drop(id, h)
	}
	a.closed = true
}

// move makes another holder pay.
func (a *account) move(to *holder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.streams {
		if h.call > 0 {
			a.holder.calls.Add(-1)
			to.calls.Add(1)
		}
		if !h.ending {
			a.holder.held.Add(-h.all())
			to.held.Add(h.all())
		}
	}
	a.holder = to
}

// payer returns whose the connection is.
func (a *account) payer() *holder {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holder
}

// heaviest returns the stream that holds the most data.
func (a *account) heaviest() (heaviest *held, all int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.streams {
		if n := h.data(); !h.ending && n > all {
			heaviest, all = h, n
		}
	}
	return heaviest, all
}

// finish ends a stream's call; where there is none yet, begin does. What it holds is as good as gone.
func (a *account) finish(h *held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.ending || a.closed {
		return
	}
	a.add(-h.all())
	h.ending = true
	if h.cancel != nil {
		h.cancel()
	}
}
