// SPDX-License-Identifier: Apache-2.0

package parking

import (
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/tunnel"
)

// Stream is a parked stream, or one that was.
type Stream struct {
	tunnel.Stream

	lot  *Lot
	name string
	peer *peer
	done chan error // has room for the one value that ends the stream's call
	// first receives the first frame, and the user of the stream takes it once.
	first chan received
	taken atomic.Bool // first has been taken
}

// hearer is a stream that is told of each frame for a connection that has it.
type hearer interface{ Heard() }

var errUnneeded = status.Error(codes.Unavailable, "the stream has not been needed")

// received is what a read of a stream returned.
type received struct {
	frame tunnel.Frame
	err   error
	none  bool // nothing was read
}

// watch reads the stream while it is parked, so that no window's worth of data lies here unread. A
// peer that sends something before it is asked loses the stream. What arrives later is the
// connection's.
func (s *Stream) watch() {
	var r received
	r.err = s.Stream.RecvMsg(&r.frame)
	if s.lot.unpark(s) {
		if r.err != nil {
			s.finish(errUnneeded)
			return
		}
		r.frame.Free()
		s.finish(status.Error(codes.InvalidArgument, "something was sent on a stream that no connection has"))
		return
	}
	s.first <- r // has room for one
}

// RecvMsg is called by one goroutine at a time. m is a *tunnel.Frame.
func (s *Stream) RecvMsg(m any) error {
	err := s.recv(m)
	if h, ok := s.Stream.(hearer); ok && err == nil {
		h.Heard()
	}
	return err
}

func (s *Stream) recv(m any) error {
	if s.taken.Swap(true) {
		return s.Stream.RecvMsg(m)
	}
	select {
	case r := <-s.first:
		if r.none {
			return s.Stream.RecvMsg(m)
		}
		if r.err == nil {
			*m.(*tunnel.Frame) = r.frame
		}
		return r.err
	case <-s.Context().Done():
		return status.FromContextError(s.Context().Err()).Err()
	}
}

// Release ends the use of a stream that was taken. Without an error the peer sees the stream end,
// with one it sees a reset. Only the first call counts.
func (s *Stream) Release(err error) { s.finish(err) }

func (s *Stream) finish(err error) {
	select {
	case s.done <- err:
	default:
	}
}

// Wait returns the result of the stream's call, once the stream has been released or dropped, its
// peer has closed it, or closing is closed.
func (s *Stream) Wait(closing <-chan struct{}) error {
	select {
	case err := <-s.done:
		return err
	case <-s.Context().Done():
	case <-closing:
	}
	if s.lot.unpark(s) {
		return errUnneeded
	}
	// A connection has the stream. Whoever relays it notices its end; until then the call must stay.
	return <-s.done
}
