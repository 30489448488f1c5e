package tunnel

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"
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

// Relay passes frames between two streams as they are. It returns nil when both directions have ended with FIN, and otherwise an error as
// soon as either stream ends or sends RESET. Both streams' RPC handlers must return after it: that is what ends the other stream, and with it the goroutine
// that may still be reading there.
func Relay(a, b Stream) error {
	ended := make(chan error, 2)
	go func() { ended <- forward(a, b) }()
	go func() { ended <- forward(b, a) }()
	for range 2 {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
		case <-a.Context().Done():
			return errors.Join(errGone, a.Context().Err())
		case <-b.Context().Done():
			return errors.Join(errGone, b.Context().Err())
		}
	}
	return nil
}

var errGone = errors.New("one end of the tunnel is gone")

// forward passes one direction's frames until FIN (nil) or RESET.
func forward(from, to Stream) error {
	for {
		var f Frame
		if err := from.RecvMsg(&f); err != nil {
			return fmt.Errorf("read from one end of the tunnel: %w", err)
		}
		kind := f.Kind
		err := to.SendMsg(&f)
		f.Free()
		if err != nil {
			return fmt.Errorf("write to the other end of the tunnel: %w", err)
		}
		switch kind {
		case tunnelpb.Frame_FIN:
			return nil
		case tunnelpb.Frame_RESET:
			return &ResetError{Reason: "reset by one end"}
		}
	}
}
