// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// line is one direction of a connection in memory.
type line struct {
	mu       sync.Mutex
	changed  sync.Cond
	bytes    []byte
	ended    bool // FIN
	broken   bool // RST
	closed   bool // nobody reads
	deadline time.Time
}

func newLine() *line {
	l := &line{}
	l.changed.L = &l.mu
	return l
}

func (l *line) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.changed.Broadcast()
}

func (l *line) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return 0, os.ErrClosed
		case !l.deadline.IsZero() && !time.Now().Before(l.deadline):
			return 0, os.ErrDeadlineExceeded
		case l.broken:
			return 0, syscall.ECONNRESET
		case len(l.bytes) > 0:
			n := copy(p, l.bytes)
			l.bytes = l.bytes[n:]
			return n, nil
		case l.ended:
			return 0, io.EOF
		}
		l.changed.Wait()
	}
}

func (l *line) write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.broken || l.closed {
		return 0, syscall.EPIPE
	}
	l.bytes = append(l.bytes, p...)
	l.changed.Broadcast()
	return len(p), nil
}

// end is one end of a connection in memory.
type end struct{ in, out *line }

// pair makes a connection. Its buffers have no bounds, and it keeps no time beyond what the tests
// need.
func pair() (a, b *end) {
	x, y := newLine(), newLine()
	return &end{x, y}, &end{y, x}
}

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }
func (e *end) CloseWrite() error           { e.out.set(func() { e.out.ended = true }); return nil }

func (e *end) Close() error {
	e.CloseWrite()
	e.in.set(func() { e.in.closed = true })
	return nil
}

func (e *end) reset() {
	e.out.set(func() { e.out.broken = true })
	e.in.set(func() { e.in.closed = true })
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.set(func() { e.in.deadline = t })
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		time.AfterFunc(wait, func() { e.in.set(func() {}) })
	}
	return nil
}

func (e *end) duplex() stream.Duplex { return stream.Of(e, e.reset) }
