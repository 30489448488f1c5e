// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/mem"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// Write copies p once, since the transport may send it after Write has returned.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		if err := c.send(c.pools.copyOf(p[:n])); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// send sends one buffer, which it takes over.
func (c *Conn) send(b mem.Buffer) error {
	defer b.Free()
	c.sending.Add(1) // before the deadline is looked at, so that one of the two sees the other
	defer c.sending.Add(-1)
	select {
	case <-c.writeDeadline.passed():
		return os.ErrDeadlineExceeded
	default:
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.finSent.Load() {
		return fmt.Errorf("%w: %w", errFinished, os.ErrClosed)
	}
	return c.sendFrame(&Frame{Data: mem.BufferSlice{b}})
}

// sendFrame needs the lock writing.
func (c *Conn) sendFrame(f *Frame) error {
	err := c.failure()
	if err == nil {
		if err = c.stream.SendMsg(f); err == nil {
			return nil
		}
		// The reason is for the receiving side to find out.
		if broken := c.failure(); broken != nil {
			err = broken
		} else {
			err = &ResetError{Reason: "send: " + err.Error()}
		}
	}
	if c.timedOut.Load() {
		return os.ErrDeadlineExceeded
	}
	return err
}

// CloseWrite sends FIN: no more data from here.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.finSent.Load() {
		return nil
	}
	if err := c.failure(); err != nil {
		return err
	}
	return c.finish()
}

// finish sends FIN; it needs the lock writing.
func (c *Conn) finish() error {
	c.finSent.Store(true)
	if err := c.stream.SendMsg(&Frame{Kind: tunnelpb.Frame_FIN}); err != nil {
		c.finSent.Store(false)
		return &ResetError{Reason: "send FIN: " + err.Error()}
	}
	return nil
}

// ReadFrom sends everything that r gives, up to its end, without copying it more than gRPC's
// buffers are worth. It does not send FIN.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	n, readErr, writeErr := c.readFrom(r)
	return n, errors.Join(readErr, writeErr)
}

// readFrom tells the tunnel's errors from those of r.
func (c *Conn) readFrom(r io.Reader) (total int64, readErr, writeErr error) {
	read := readInto(r, c.pools.chunks)
	for {
		chunk, n, err := read()
		if n > 0 {
			total += int64(n)
			if err := c.send(c.pools.filled(chunk, n)); err != nil {
				return total, nil, err
			}
		} else if chunk != nil {
			c.pools.chunks.Put(chunk)
		}
		if err == io.EOF {
			return total, nil, nil
		} else if err != nil {
			return total, err, nil
		}
	}
}

// readFunc reads into a chunk, which the caller has to give back; it may be nil when nothing was
// read.
type readFunc func() (chunk *[]byte, n int, err error)

func plainRead(r io.Reader, chunks mem.BufferPool) readFunc {
	return func() (*[]byte, int, error) {
		chunk := chunks.Get(chunkSize)
		n, err := r.Read(*chunk)
		return chunk, n, err
	}
}

// SetWriteDeadline makes Write return os.ErrDeadlineExceeded from then on. A Write that is held
// back at that moment cannot be taken back from the transport: the tunnel is reset.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}

func (c *Conn) writeTimeout() {
	if c.sending.Load() > 0 {
		c.timedOut.Store(true)
		c.Reset("a write was held back for too long")
	}
}
