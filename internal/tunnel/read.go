// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/mem"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// Read gives io.EOF after the peer's FIN and a *ResetError after a reset. What arrived before a
// reset of the peer's is read first.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.fill(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) && len(c.current) > 0 {
		m, rest := mem.ReadUnsafe(p[n:], c.current[0])
		n += m
		if rest == nil || rest.Len() == 0 {
			c.current = c.current[1:]
		} else {
			c.current[0] = rest
		}
	}
	return n, nil
}

// fill waits until c.current holds data.
func (c *Conn) fill() error {
	for {
		select {
		case <-c.shut:
			return c.failure()
		default:
		}
		select {
		case <-c.readDeadline.passed():
			return os.ErrDeadlineExceeded
		default:
		}
		if len(c.current) > 0 {
			return nil
		}
		if c.eof {
			return io.EOF
		}
		select {
		case f, ok := <-c.frames:
			switch {
			case !ok:
				return cmp.Or(c.failure(), io.EOF)
			case f.Kind == tunnelpb.Frame_FIN:
				c.eof = true
			default:
				c.current = f.Data
			}
		case <-c.readDeadline.passed():
		case <-c.shut:
		}
	}
}

// WriteTo writes everything up to the peer's FIN to w, without copying.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	n, readErr, writeErr := c.writeTo(w)
	return n, errors.Join(readErr, writeErr)
}

// writeTo tells the tunnel's errors from those of w.
func (c *Conn) writeTo(w io.Writer) (total int64, readErr, writeErr error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	var storage [][]byte
	for {
		if err := c.fill(); err == io.EOF {
			return total, nil, nil
		} else if err != nil {
			return total, err, nil
		}
		storage = storage[:0]
		for _, b := range c.current {
			storage = append(storage, b.ReadOnlyData())
		}
		vector := net.Buffers(storage) // one writev for a TCP connection
		n, err := vector.WriteTo(w)
		total += n
		c.current.Free()
		c.current = nil
		if err != nil {
			return total, nil, err
		}
	}
}

// SetReadDeadline makes Read return os.ErrDeadlineExceeded from then on.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}
