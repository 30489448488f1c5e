// SPDX-License-Identifier: Apache-2.0

package parking

import (
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

// Wait returns what the stream's call is to return, once the stream has been released or dropped,
// its peer has closed it, or closing is closed.
func (s *Stream) Wait(closing <-chan struct{}) error {
	select {
	case err := <-s.done:
		return err
	case <-s.Context().Done():
	case <-closing:
	}
	if s.lot.unpark(s) {
		return status.Error(codes.Unavailable, "the stream has not been needed")
	}
	// A connection has the stream. Whoever relays it notices its end; until then the call must stay.
	return <-s.done
}
