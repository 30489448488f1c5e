// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"sync"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// backlog is how much may wait to be written before those who can wait do.
const backlog = 256 << 10

// writer is the way to one peer, with the connection's lock around it. Frames leave in the order in
// which they were added. Nobody holds the lock while he writes: whoever finds nobody writing writes
// for all.
type writer struct {
	dst     stream.Duplex
	mu      *sync.Mutex
	changed sync.Cond // a write ended

	pending []byte // frames, whole ones
	spare   []byte
	echo    int  // bytes of pending that answer what the peer itself has sent
	busy    bool // somebody writes
	mid     bool // what was written ends inside a frame, of which only forward has the rest
	err     error
}

func newWriter(dst stream.Duplex, mu *sync.Mutex) *writer {
	return &writer{dst: dst, mu: mu, changed: sync.Cond{L: mu}}
}

// acquire waits until nobody writes.
func (w *writer) acquire() {
	for w.busy {
		w.changed.Wait()
	}
}

// forward writes p as it is, and then what was added meanwhile. mid says that p ends inside a
// frame. acquire was called, without the lock having been let go since.
func (w *writer) forward(p []byte, mid bool) {
	w.busy = true
	w.write(p)
	w.mid = mid
	w.busy = false
	w.flush()
	w.changed.Broadcast()
}

// flush writes what was added, or leaves it to whoever is writing, waiting then if there is much.
func (w *writer) flush() {
	for w.busy && len(w.pending) > backlog {
		w.changed.Wait()
	}
	if w.busy || w.mid {
		return
	}
	w.busy = len(w.pending) > 0
	w.drain()
}

// drain writes what was added. The caller has set busy.
func (w *writer) drain() {
	if !w.busy {
		return
	}
	for len(w.pending) > 0 {
		p := w.pending
		w.pending, w.spare, w.echo = w.spare, nil, 0
		w.write(p)
		if cap(p) <= frameSize {
			w.spare = p[:0]
		}
	}
	w.pending, w.spare, w.echo = nil, nil, 0
	w.busy = false
	w.changed.Broadcast()
}

// write lets go of the lock while it writes.
func (w *writer) write(p []byte) {
	if w.err != nil || len(p) == 0 {
		return
	}
	err := w.writeUnlocked(p)
	if err != nil && w.err == nil {
		w.err = err
	}
}

func (w *writer) writeUnlocked(p []byte) error {
	w.mu.Unlock()
	defer w.mu.Lock()
	_, err := w.dst.Write(p)
	return err
}

// drained waits until all that was added is written, or cannot be.
func (w *writer) drained(spawn func(func())) {
	w.kick(spawn)
	for w.busy {
		w.changed.Wait()
	}
}

// kick has what was added written by another goroutine, for those who must not wait.
func (w *writer) kick(spawn func(func())) {
	if w.busy || w.mid || len(w.pending) == 0 || w.err != nil {
		return
	}
	w.busy = true
	spawn(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drain()
	})
}
