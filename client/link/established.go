// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/version"
)

// errSilent ends a connection on which nothing arrives any more. Other connections on the same path
// may be dead too.
var errSilent = errors.New("the traffic manager no longer answers")

// established is a connection on which the manager has said hello.
type established struct {
	clients clientpb.ClientsClient
	stream  clientpb.Clients_SessionClient
	hello   *clientpb.ManagerHello
}

// greet opens the session's stream and exchanges hellos.
func (l *Link) greet(ctx context.Context, clients clientpb.ClientsClient) (*established, error) {
	stream, err := clients.Session(ctx)
	if err != nil {
		return nil, err
	}
	hello := &clientpb.ClientHello{Session: l.Session, Holder: l.Holder, Version: version.Version,
		Protocol: version.Protocol}
	if err := stream.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: hello}}); err != nil {
		// io.EOF: the reason is what Recv returns.
		if _, recvErr := stream.Recv(); recvErr != nil {
			err = recvErr
		}
		return nil, err
	}
	type answer struct {
		message *clientpb.ManagerMessage
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		m, err := stream.Recv()
		answers <- answer{m, err}
	}()
	timer := time.NewTimer(l.Timing.GiveUp)
	defer timer.Stop()
	var got answer
	select {
	case got = <-answers:
	case <-timer.C:
		return nil, errors.New("the traffic manager does not answer")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if got.err != nil {
		return nil, got.err
	}
	theirs := got.message.GetHello()
	switch {
	case theirs == nil:
		return nil, fmt.Errorf("the traffic manager did not say hello but %T", got.message.GetMessage())
	case theirs.GetProtocol() != version.Protocol:
		return nil, skew(theirs)
	}
	return &established{clients, stream, theirs}, nil
}

func skew(theirs *clientpb.ManagerHello) error {
	mend := "upgrade this sidestep"
	if theirs.GetProtocol() < version.Protocol {
		mend = "run `sidestep helm upgrade`"
	}
	return reason.New(codes.FailedPrecondition, reason.VersionSkew,
		"the traffic manager (%s) speaks protocol %d and this sidestep (%s) protocol %d",
		theirs.GetVersion(), theirs.GetProtocol(), version.Version, version.Protocol).
		Advise("%s", mend)
}

// maintain serves the connection until it dies, which is always with an error, and then ends
// everything that uses it.
func (l *Link) maintain(ctx context.Context, end context.CancelFunc, h *established, flow *metered, way *Way) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	in := make(chan *clientpb.ManagerMessage)
	out := make(chan *clientpb.ClientMessage, 16)
	broken := make(chan error, 1)
	wants := make(chan uint32, 16)
	lines := make(chan Line, Further)
	wg.Go(func() { broken <- receive(ctx, h.stream, in) })
	wg.Go(func() { send(ctx, h.stream, out) })
	wg.Go(func() { l.Serve(ctx, h.clients, lines, wants) })
	wg.Go(func() { l.widen(ctx, way, lines) })

	ping := time.NewTicker(l.Timing.Ping)
	defer ping.Stop()
	deadline := time.NewTimer(l.Timing.GiveUp)
	defer deadline.Stop()
	var id uint64
	for {
		select {
		case m := <-in:
			l.hear()
			flow.taken()
			deadline.Reset(l.Timing.GiveUp)
			switch m := m.GetMessage().(type) {
			case *clientpb.ManagerMessage_Ping:
				offer(out, &clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: m.Ping}})
			case *clientpb.ManagerMessage_WantAccepts:
				offer(wants, m.WantAccepts)
			}
		case <-ping.C:
			id++
			offer(out, pingMessage(id))
		case <-l.wake:
			// A connection that survived the sleep answers soon.
			id++
			offer(out, pingMessage(id))
			deadline.Reset(min(l.Timing.Ping, l.Timing.GiveUp))
		case <-deadline.C:
			if flow.taken() >= bulk {
				l.hear()
				deadline.Reset(l.Timing.GiveUp)
				continue
			}
			return errSilent
		case err := <-broken:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bulk is how many bytes, received while a pong is due, show that the pong only waits behind other
// data in the buffers of a slow connection. Pings of transports are far less.
const bulk = 64 << 10

// metered is a connection that counts the bytes received.
type metered struct {
	net.Conn
	received atomic.Int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.received.Add(int64(n))
	return n, err
}

// taken returns the bytes received since the last call.
func (m *metered) taken() int64 { return m.received.Swap(0) }

func pingMessage(id uint64) *clientpb.ClientMessage {
	return &clientpb.ClientMessage{Message: &clientpb.ClientMessage_Ping{Ping: &clientpb.Ping{Id: id}}}
}

// offer queues a message to be sent, unless too many wait already: then the connection is as good
// as dead.
func offer[T any](to chan<- T, m T) {
	select {
	case to <- m:
	default:
	}
}

func receive(ctx context.Context, stream clientpb.Clients_SessionClient,
	in chan<- *clientpb.ManagerMessage) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("the connection to the traffic manager ended: %w", err)
		}
		select {
		case in <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send ends silently when the stream breaks: receive returns the reason.
func send(ctx context.Context, stream clientpb.Clients_SessionClient, out <-chan *clientpb.ClientMessage) {
	for {
		select {
		case m := <-out:
			if stream.Send(m) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
