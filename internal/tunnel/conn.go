package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// Stream is what the bidirectional streams of gRPC clients and servers have in common.
type Stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
	Context() context.Context
}

// ResetError says that a tunnel was reset, or that what carried it broke. It is a syscall.ECONNRESET to errors.Is.
type ResetError struct {
	Reason string
}

func (e *ResetError) Error() string { return "tunnel reset: " + e.Reason }

// Is makes a reset tunnel look like a reset TCP connection.
func (e *ResetError) Is(target error) bool { return target == syscall.ECONNRESET }

const (
	// frameData bounds the data of one frame.
	frameData = 64 << 10
	// lingering bounds how long a closed tunnel waits for its peer before it is given up.
	lingering = 30 * time.Second
)

var pool = mem.DefaultBufferPool()

// Conn is one end of a tunnel over a client-side stream. Reading and writing may go on at the same time; several goroutines may write.
type Conn struct {
	stream Stream
	cancel context.CancelFunc // ends the stream
	local  net.Addr
	remote net.Addr

	frames chan Frame // from pump to Read; closed when the stream has nothing more
	opened chan *tunnelpb.Opened
	done   chan struct{} // closed by Reset and by the end of the stream

	writing   sync.Mutex
	finSent   bool
	closeOnce sync.Once

	reading sync.Mutex
	current mem.BufferSlice // what Read has not given out yet
	eof     bool

	mu           sync.Mutex
	err          error // why the tunnel broke
	readDeadline *deadline
	closed       bool
}

// Option changes how a Conn is made.
type Option func(*Conn)

// OnClose gives the function that cancels the stream's context. Without it a Conn that is reset or closed early lives on until its peer ends it.
func OnClose(cancel context.CancelFunc) Option { return func(c *Conn) { c.cancel = cancel } }

// Open starts a tunnel: it sends OPEN and waits for nothing. Data may be written at once; whether it arrives is what Opened tells.
func Open(s Stream, open *tunnelpb.Open, options ...Option) (*Conn, error) {
	c := newConn(s, options)
	c.local, c.remote = addr(open.GetRemoteAddr()), addr(open.GetInterceptNamespace()+"/"+open.GetInterceptName())
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
	c.local, c.remote = addr(open.GetLocalAddr()), addr(open.GetRemoteAddr())
	go c.pump()
	return open, c, nil
}

func newConn(s Stream, options []Option) *Conn {
	c := &Conn{
		stream: s, cancel: func() {},
		frames: make(chan Frame, 1), opened: make(chan *tunnelpb.Opened, 1), done: make(chan struct{}),
		readDeadline: newDeadline(),
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// pump takes frames off the stream. One frame waits in the channel; behind it gRPC's flow control holds the peer back.
func (c *Conn) pump() {
	defer close(c.frames)
	for {
		var f Frame
		if err := c.stream.RecvMsg(&f); err != nil {
			if err == io.EOF {
				err = errors.New("the other side ended it early")
			}
			c.fail(err.Error())
			return
		}
		switch f.Kind {
		case tunnelpb.Frame_DATA:
			select {
			case c.frames <- f:
			case <-c.done:
				f.Free()
				return
			}
		case tunnelpb.Frame_OPENED:
			answer := new(tunnelpb.Opened)
			err := proto.Unmarshal(f.Data.Materialize(), answer)
			f.Free()
			if err != nil {
				c.fail("malformed OPENED")
				return
			}
			select {
			case c.opened <- answer:
			default: // a second answer means nothing
			}
		case tunnelpb.Frame_FIN:
			f.Free()
			c.drain()
			return
		case tunnelpb.Frame_RESET:
			reason := string(f.Data.Materialize())
			f.Free()
			c.fail(reason)
			return
		default:
			f.Free()
		}
	}
}

// drain follows the peer's FIN: Read sees the end at once, and the stream is watched for the peer's RESET or the clean end.
func (c *Conn) drain() {
	select {
	case c.frames <- Frame{Kind: tunnelpb.Frame_FIN}:
	case <-c.done:
		return
	}
	for {
		var f Frame
		err := c.stream.RecvMsg(&f)
		f.Free()
		switch {
		case err == io.EOF && c.finished():
			c.cancel()
			return
		case err != nil:
			c.fail(err.Error())
			return
		case f.Kind == tunnelpb.Frame_RESET:
			c.fail("by the other side")
			return
		}
	}
}

func (c *Conn) finished() bool {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.finSent
}

// fail marks the tunnel as broken and ends the stream; the first reason stays.
func (c *Conn) fail(reason string) {
	c.mu.Lock()
	if c.err == nil {
		c.err = &ResetError{Reason: reason}
		close(c.done)
	}
	c.mu.Unlock()
	c.cancel()
}

func (c *Conn) broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Opened waits for the answer to OPEN.
func (c *Conn) Opened(ctx context.Context) (*tunnelpb.Opened, error) {
	select {
	case answer := <-c.opened:
		return answer, nil
	default:
	}
	select {
	case answer := <-c.opened:
		return answer, nil
	case <-c.done:
		select {
		case answer := <-c.opened: // it came just before the end
			return answer, nil
		default:
			return nil, c.broken()
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the laptop to answer: %w", ctx.Err())
	}
}

// Answer sends OPENED.
func (c *Conn) Answer(result tunnelpb.Opened_Result, message string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return SendOpened(c.stream, result, message)
}

// Read gives io.EOF after the peer's FIN and a *ResetError after a reset.
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
	for len(c.current) == 0 {
		if c.eof {
			return io.EOF
		}
		if err := c.closedErr(); err != nil {
			return err
		}
		select {
		case f, ok := <-c.frames:
			switch {
			case !ok:
				return c.broken()
			case f.Kind == tunnelpb.Frame_FIN:
				c.eof = true
			default:
				c.current = f.Data
			}
		case <-c.readDeadline.passed():
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

func (c *Conn) closedErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return nil
}

// WriteTo writes everything up to the peer's FIN to w, without copying.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	var total int64
	for {
		if err := c.fill(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		for len(c.current) > 0 {
			n, err := w.Write(c.current[0].ReadOnlyData())
			total += int64(n)
			c.current[0].Free()
			c.current = c.current[1:]
			if err != nil {
				return total, err
			}
		}
	}
}

// Write copies p once, since the transport may send it after Write has returned.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), frameData)
		if err := c.send(mem.Copy(p[:n], pool)); err != nil {
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
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.finSent {
		return fmt.Errorf("write to tunnel: %w", net.ErrClosed)
	}
	if err := c.stream.SendMsg(&Frame{Data: mem.BufferSlice{b}}); err != nil {
		if broken := c.broken(); broken != nil {
			return broken
		}
		return &ResetError{Reason: err.Error()}
	}
	return nil
}

// CloseWrite sends FIN: no more data from here.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.finSent {
		return nil
	}
	c.finSent = true
	if err := c.stream.SendMsg(&Frame{Kind: tunnelpb.Frame_FIN}); err != nil {
		if broken := c.broken(); broken != nil {
			return broken
		}
		return &ResetError{Reason: err.Error()}
	}
	return nil
}

// Reset ends both directions at once. The peer sees a reset: the cancelled stream says it.
func (c *Conn) Reset(reason string) { c.fail(reason) }

// Close ends the tunnel as close(2) does a connection: FIN if none was sent, nobody reads any more, and data that still comes resets it.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		c.readDeadline.set(time.Unix(1, 0)) // wake a Read that waits
		_ = c.CloseWrite()
		go c.linger()
	})
	return nil
}

// linger lets the FIN get through before the stream is cancelled.
func (c *Conn) linger() {
	timer := time.NewTimer(lingering)
	defer timer.Stop()
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.current) > 0 {
		c.current.Free()
		c.current = nil
		c.fail("closed with unread data")
	}
	for {
		select {
		case f, ok := <-c.frames:
			if !ok {
				return
			}
			if f.Kind != tunnelpb.Frame_FIN {
				f.Free()
				c.fail("closed with unread data")
			}
		case <-timer.C:
			c.fail("closed, and the other side did not close")
		}
	}
}

// LocalAddr and RemoteAddr name the ends as OPEN did.
func (c *Conn) LocalAddr() net.Addr  { return c.local }
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline is SetReadDeadline: writes wait for as long as the peer holds them back, or until Reset.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline makes Read return os.ErrDeadlineExceeded from then on.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline is not supported.
func (c *Conn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

type addr string

func (addr) Network() string  { return "tunnel" }
func (a addr) String() string { return string(a) }
