// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// SendOpen sends the first frame of a tunnel.
func SendOpen(s Stream, open *tunnelpb.Open) error {
	return sendMessage(s, tunnelpb.Frame_OPEN, open)
}

// RecvOpen waits for the first frame of a tunnel.
func RecvOpen(s Stream) (*tunnelpb.Open, error) {
	var f Frame
	if err := s.RecvMsg(&f); err != nil {
		return nil, err
	}
	defer f.Free()
	if f.Kind != tunnelpb.Frame_OPEN {
		return nil, fmt.Errorf("tunnel starts with %s instead of OPEN", f.Kind)
	}
	open := new(tunnelpb.Open)
	if err := proto.Unmarshal(f.Data.Materialize(), open); err != nil {
		return nil, fmt.Errorf("decode OPEN: %w", err)
	}
	return open, nil
}

var errNoOpen = errors.New("no OPEN came in time")

// RecvOpenWithin is RecvOpen with a bound on how long it waits. After an error the stream's handler
// must return, which ends what still waits on the stream.
func RecvOpenWithin(s Stream, patience time.Duration) (*tunnelpb.Open, error) {
	type result struct {
		open *tunnelpb.Open
		err  error
	}
	received := make(chan result, 1)
	go func() {
		open, err := RecvOpen(s)
		received <- result{open, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-received:
		return r.open, r.err
	case <-timer.C:
		return nil, errNoOpen
	}
}

// OpenStatus is what a call is to return that could not receive OPEN; doing says what it was about.
func OpenStatus(err error, doing string) error {
	code := codes.InvalidArgument
	if errors.Is(err, errNoOpen) {
		code = codes.DeadlineExceeded
	}
	return status.Errorf(code, "%s: %v", doing, err)
}

// SendOpened answers OPEN.
func SendOpened(s Stream, result tunnelpb.Opened_Result, message string) error {
	return sendMessage(s, tunnelpb.Frame_OPENED, &tunnelpb.Opened{Result: result, Message: message})
}

func sendMessage(s Stream, kind tunnelpb.Frame_Kind, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kind, err)
	}
	return s.SendMsg(&Frame{Kind: kind, Data: mem.BufferSlice{mem.SliceBuffer(body)}})
}

// relayPatience is how long a stream may take the news that the other one is gone. If it holds them
// back, the end of its RPC says it.
const relayPatience = 500 * time.Millisecond

// Relay passes frames between two server-side streams as they are. It returns nil when both
// directions have ended with FIN, and otherwise an error as soon as either stream ends or sends
// RESET; the other one has got RESET then, if it takes anything. Both streams' RPC handlers must
// return after it, with that error: that is what ends the streams, and with them the goroutines
// that may still use them. What was passed on before is still delivered, ahead of the end of the
// RPC.
func Relay(a, b Stream) error {
	r := &relay{fins: make(chan struct{}, 2), ends: make(chan error, 2)}
	go r.forward(a, b, &r.aToB, &r.bToA)
	go r.forward(b, a, &r.bToA, &r.aToB)
	aGone, bGone := a.Context().Done(), b.Context().Done()
	var patience <-chan time.Time
	for fins, ends := 0, 0; ; {
		select {
		case <-r.fins:
			if fins++; fins == 2 {
				return nil
			}
		case err := <-r.ends:
			// When the receiving stream of a direction breaks, the other direction finds that out
			// as well, and tells the sender.
			if ends++; ends == 2 || !errors.Is(err, errSend) {
				return err
			}
			patience = time.After(relayPatience)
		// Usually the direction that receives from there tells; but it may be held back by the
		// other stream.
		case <-aGone:
			aGone, patience = nil, time.After(relayPatience)
		case <-bGone:
			bGone, patience = nil, time.After(relayPatience)
		case <-patience:
			return errGone
		}
	}
}

var (
	errGone = errors.New("one end of the tunnel is gone")
	errSend = errors.New("write to one end of the tunnel")
)

type relay struct {
	fins       chan struct{} // a direction has passed on FIN
	ends       chan error    // a direction cannot go on
	aToB, bToA atomic.Bool   // FIN was passed on
}

// forward passes one direction's frames, until the stream ends or sends RESET: that may also come
// after FIN.
func (r *relay) forward(from, to Stream, fin, otherFin *atomic.Bool) {
	for {
		var f Frame
		if err := from.RecvMsg(&f); err != nil {
			if fin.Load() && otherFin.Load() {
				return
			}
			reason := "the other end ended it early"
			if err != io.EOF {
				reason = "the other end is gone: " + status.Convert(err).Message()
			}
			_ = to.SendMsg(&Frame{Kind: tunnelpb.Frame_RESET, Data: mem.BufferSlice{mem.SliceBuffer(reason)},
				Gone: err != io.EOF})
			r.ends <- fmt.Errorf("read from one end of the tunnel: %w", err)
			return
		}
		kind := f.Kind
		if err := to.SendMsg(&f); err != nil {
			f.Free()
			r.ends <- fmt.Errorf("%w: %w", errSend, err)
			return
		}
		if kind == tunnelpb.Frame_RESET {
			r.ends <- &ResetError{Reason: string(f.Data.Materialize()), Gone: f.Gone}
			f.Free()
			return
		}
		f.Free()
		if kind == tunnelpb.Frame_FIN && !fin.Swap(true) {
			r.fins <- struct{}{}
		}
	}
}
