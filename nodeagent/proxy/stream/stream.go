// SPDX-License-Identifier: Apache-2.0

// Package stream is the proxy's view of connections: two streams of bytes each, whose buffers exist
// only while there are bytes in them. An idle connection holds none.
package stream

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// Duplex is one peer: a stream of bytes from it and one to it. One goroutine may read while another
// writes; the other methods may be called at any time.
type Duplex interface {
	// Fill waits until there are bytes, and adds what there is, as far as b has room. It fails with
	// io.EOF after the peer's half-close, with an error that Is syscall.ECONNRESET after a reset,
	// and with one that Is os.ErrDeadlineExceeded after the deadline.
	Fill(b *Buffer) error
	io.Writer
	// CloseWrite is a half-close: the peer has all the bytes that it will get.
	CloseWrite() error
	// Reset ends both streams at once, and lets the peer know that it was not in order.
	Reset()
	// Close ends both streams in order, when nothing more is to be read.
	Close() error
	SetReadDeadline(t time.Time) error
}

// Interrupted reports whether err is from a read deadline.
func Interrupted(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// IsReset reports whether err says that the peer ended the connection out of order, or that the
// connection broke.
func IsReset(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && !Interrupted(err)
}

// ErrReset is what a stream fails with when it was reset and nothing else is known.
var ErrReset error = syscall.ECONNRESET
