// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"sync"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// backlog is how much may wait to be written before those who can wait do.
const backlog = 256 << 10

// outlet is the way to one peer, with the connection's lock around it. Frames leave in the order in
// which they were added. Nobody holds the lock while he writes: whoever finds nobody writing writes
// for all.
type outlet struct {
	dst     stream.Duplex
	mu      *sync.Mutex
	changed sync.Cond // a write ended

	pending []byte // frames, whole ones
	spare   []byte
	busy    bool // somebody writes
	mid     bool // what was written ends inside a frame, of which only forward has the rest
	err     error
}

func newOutlet(dst stream.Duplex, mu *sync.Mutex) *outlet {
	return &outlet{dst: dst, mu: mu, changed: sync.Cond{L: mu}}
}

// acquire waits until nobody writes.
func (o *outlet) acquire() {
	for o.busy {
		o.changed.Wait()
	}
}

// forward writes p as it is, and then what was added meanwhile. mid says that p ends inside a
// frame. acquire was called, without the lock having been let go since.
func (o *outlet) forward(p []byte, mid bool) {
	o.busy = true
	o.write(p)
	o.mid = mid
	o.busy = false
	o.flush()
	o.changed.Broadcast()
}

// flush writes what was added, or leaves it to whoever is writing, waiting then if there is much.
func (o *outlet) flush() {
	for o.busy && len(o.pending) > backlog {
		o.changed.Wait()
	}
	if o.busy || o.mid {
		return
	}
	o.busy = len(o.pending) > 0
	o.drain()
}

// drain writes what was added. The caller has set busy.
func (o *outlet) drain() {
	if !o.busy {
		return
	}
	for len(o.pending) > 0 {
		p := o.pending
		o.pending, o.spare = o.spare, nil
		o.write(p)
		if cap(p) <= frameSize {
			o.spare = p[:0]
		}
	}
	o.pending, o.spare = nil, nil
	o.busy = false
	o.changed.Broadcast()
}

// write lets go of the lock while it writes.
func (o *outlet) write(p []byte) {
	if o.err != nil || len(p) == 0 {
		return
	}
	err := o.writeUnlocked(p)
	if err != nil && o.err == nil {
		o.err = err
	}
}

func (o *outlet) writeUnlocked(p []byte) error {
	o.mu.Unlock()
	defer o.mu.Lock()
	_, err := o.dst.Write(p)
	return err
}

// drained waits until all that was added is written, or cannot be.
func (o *outlet) drained(spawn func(func())) {
	o.kick(spawn)
	for o.busy {
		o.changed.Wait()
	}
}

// kick has what was added written by another goroutine, for those who must not wait.
func (o *outlet) kick(spawn func(func())) {
	if o.busy || o.mid || len(o.pending) == 0 || o.err != nil {
		return
	}
	o.busy = true
	spawn(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.drain()
	})
}
