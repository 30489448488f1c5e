// SPDX-License-Identifier: Apache-2.0

// Package tunnel carries TCP connections over gRPC streams, one stream a connection: opening with
// an answer, raw bytes, half-close, reset and back-pressure. Data is never copied between the
// socket's buffer and the transport.
//
// The two ends of a tunnel are Conns, both over streams that gRPC clients made: Open makes the node
// agent's and Accept the laptop's. In between, the manager joins two server-side streams with
// RecvOpen, SendOpen and Relay. Copy joins a Conn with a TCP connection.
package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// Stream is what the bidirectional streams of gRPC clients and servers have in common.
type Stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
	Context() context.Context
}

// ResetError says that a tunnel was reset, or that what carried it broke. It is a
// syscall.ECONNRESET to errors.Is.
type ResetError struct {
	Reason string
	// Gone: no end of the connection did it. What carried the tunnel is gone, as when the laptop lost
	// its network.
	Gone bool
}

// Error implements error.
func (e *ResetError) Error() string { return "tunnel reset: " + e.Reason }

// Is makes a reset tunnel look like a reset TCP connection.
func (e *ResetError) Is(target error) bool { return target == syscall.ECONNRESET }

// Conn is one end of a tunnel over a client-side stream. All methods may be called concurrently.
type Conn struct {
	stream Stream
	cancel context.CancelFunc // ends the stream
	pools  pools
	local  net.Addr
	remote net.Addr

	frames chan Frame // from pump to Read; closed when the stream has nothing more
	opened chan *tunnelpb.Opened
	broken chan struct{} // closed when err is set
	shut   chan struct{} // closed when nothing is to be read any more: by Close or Reset
	ended  chan struct{} // closed when pump has ended

	writing       sync.Mutex   // around SendMsg, of which gRPC allows one at a time
	sending       atomic.Int32 // calls of Write under way
	timedOut      atomic.Bool  // a Write was cut short by its deadline
	finSent       atomic.Bool
	finReceived   atomic.Bool
	writeDeadline *deadline

	reading      sync.Mutex
	current      mem.BufferSlice // what Read has not given out yet
	eof          bool
	readDeadline *deadline

	mu     sync.Mutex
	err    error // why the tunnel broke
	closed bool
	reset  bool

	closePatience time.Duration
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
)

// Option changes how a Conn is made.
type Option func(*Conn)

// OnClose gives the function that cancels the stream's context. It is called when the stream has
// ended, or has to. Without it a Conn that is reset or closed early lives on until its peer ends
// it, and so does a Write that the peer holds back.
func OnClose(cancel context.CancelFunc) Option { return func(c *Conn) { c.cancel = cancel } }

// Open starts a tunnel: it sends OPEN and waits for nothing. Data may be written at once; whether
// it arrives is what Opened tells.
func Open(s Stream, open *tunnelpb.Open, options ...Option) (*Conn, error) {
	c := newConn(s, options)
	c.local, c.remote = address(open.GetRemoteAddr()), address(open.GetLocalAddr())
	if err := SendOpen(s, open); err != nil {
		c.cancel()
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	go c.pump()
	return c, nil
}

// Accept waits for OPEN on a parked stream.
func Accept(s Stream, options ...Option) (*tunnelpb.Open, *Conn, error) {
	c := newConn(s, options)
	open, err := RecvOpen(s)
	if err != nil {
		c.cancel()
		return nil, nil, fmt.Errorf("accept tunnel: %w", err)
	}
	c.local, c.remote = address(open.GetLocalAddr()), address(open.GetRemoteAddr())
	go c.pump()
	return open, c, nil
}

func newConn(s Stream, options []Option) *Conn {
	c := &Conn{
		stream: s, cancel: func() {}, pools: pools{chunks: chunks, small: mem.DefaultBufferPool()},
		frames: make(chan Frame, 1), opened: make(chan *tunnelpb.Opened, 1),
		broken: make(chan struct{}), shut: make(chan struct{}), ended: make(chan struct{}),
		closePatience: closePatience,
	}
	c.readDeadline = newDeadline(nil)
	c.writeDeadline = newDeadline(c.writeTimeout)
	for _, o := range options {
		o(c)
	}
	return c
}

// pump takes frames off the stream until it ends. One frame waits in the channel; behind it gRPC's
// flow control holds the peer back.
func (c *Conn) pump() {
	defer close(c.ended)
	defer c.cancel()
	defer close(c.frames)
	for {
		var f Frame
		if err := c.stream.RecvMsg(&f); err != nil {
			c.streamEnded(err)
			return
		}
		switch f.Kind {
		case tunnelpb.Frame_DATA:
			c.deliver(f)
		case tunnelpb.Frame_OPENED:
			answer := new(tunnelpb.Opened)
			err := proto.Unmarshal(f.Data.Materialize(), answer)
			f.Free()
			if err != nil {
				c.Reset("malformed OPENED")
				continue
			}
			select {
			case c.opened <- answer:
			default: // a second answer means nothing
			}
		case tunnelpb.Frame_FIN:
			f.Free()
			if !c.finReceived.Swap(true) {
				c.deliver(Frame{Kind: tunnelpb.Frame_FIN})
			}
		case tunnelpb.Frame_RESET:
			reason := string(f.Data.Materialize())
			f.Free()
			c.failWith(&ResetError{Reason: reason, Gone: f.Gone})
			return
		default:
			f.Free()
		}
	}
}

// streamEnded is told how the stream ended. After FIN in both directions the handler of its server
// returns, which is the good end.
func (c *Conn) streamEnded(err error) {
	switch {
	case c.finReceived.Load() && c.finSent.Load():
	case err == io.EOF:
		c.fail("the other side ended it early")
	default:
		c.failWith(&ResetError{Reason: status.Convert(err).Message(), Gone: true})
	}
}

// deliver gives a frame to the reader.
func (c *Conn) deliver(f Frame) {
	data := f.Kind == tunnelpb.Frame_DATA
	if data && (f.Data.Len() == 0 || c.finReceived.Load()) {
		f.Free()
		return
	}
	select {
	case c.frames <- f:
		select {
		case <-c.shut:
			data = c.dropFrame()
		default:
			data = false
		}
	case <-c.shut:
		f.Free()
	}
	if data {
		c.Reset("data arrived after the reader had closed")
	}
}

// dropFrame takes away a frame that waits for a reader who will not come, and reports whether it
// was data.
func (c *Conn) dropFrame() (data bool) {
	select {
	case f := <-c.frames:
		f.Free()
		return f.Kind == tunnelpb.Frame_DATA && f.Data != nil
	default:
		return false
	}
}

// fail marks the tunnel as broken; the first reason stays.
func (c *Conn) fail(reason string) { c.failWith(&ResetError{Reason: reason}) }

func (c *Conn) failWith(err *ResetError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.broken)
	}
}

// failure is why the connection cannot be used any more, or nil.
func (c *Conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed && !c.reset {
		return net.ErrClosed
	}
	return c.err
}

// Opened waits for the answer to OPEN.
func (c *Conn) Opened(ctx context.Context) (*tunnelpb.Opened, error) {
	select {
	case answer := <-c.opened:
		return answer, nil
	case <-c.ended:
	case <-c.broken:
	case <-c.shut:
	case <-ctx.Done():
	}
	select {
	case answer := <-c.opened: // it came just before the end
		return answer, nil
	default:
	}
	err := cmp.Or(c.failure(), ctx.Err(), errUnanswered)
	return nil, fmt.Errorf("wait for the laptop to answer: %w", err)
}

// Answer sends OPENED.
func (c *Conn) Answer(result tunnelpb.Opened_Result, message string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.failure(); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return SendOpened(c.stream, result, message)
}

// LocalAddr is the client's address on the end that opened, and the pod's on the other.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the pod's address on the end that opened, and the client's on the other.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// addr is an address that OPEN gave in another form than "ip:port".
type addr string

func (addr) Network() string  { return "tunnel" }
func (a addr) String() string { return string(a) }

func address(s string) net.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return net.TCPAddrFromAddrPort(ap)
	}
	return addr(s)
}

var (
	errFinished   = errors.New("write after CloseWrite")
	errUnanswered = errors.New("it has closed instead")
)
