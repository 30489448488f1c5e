// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// pipeStream is one end of a stream in memory that encodes with the codec and treats buffers as
// gRPC is documented to, and lets none go.
type pipeStream struct {
	ctx     context.Context // ends with the client's cancel
	out, in chan mem.BufferSlice
	over    chan struct{} // closed when the server's handler has returned
	mayIn   chan struct{} // closed when the peer sends no more
	mayOut  chan struct{}
	once    sync.Once
	sending sync.Mutex // to notice two calls at once
	t       testing.TB
}

// pipe makes a stream. cancel is the client's, and ret the return of the server's handler.
func pipe(t testing.TB) (client, server *pipeStream, cancel, ret func()) {
	ctx, cancel := context.WithCancel(context.Background())
	up, down := make(chan mem.BufferSlice, 3), make(chan mem.BufferSlice, 3)
	upEnd, downEnd := make(chan struct{}), make(chan struct{})
	over := make(chan struct{})
	client = &pipeStream{ctx: ctx, out: up, in: down, over: over, mayOut: upEnd, mayIn: downEnd, t: t}
	server = &pipeStream{ctx: ctx, out: down, in: up, over: over, mayOut: downEnd, mayIn: upEnd, t: t}
	return client, server, cancel, sync.OnceFunc(func() {
		close(over)
		close(downEnd)
		context.AfterFunc(ctx, func() { drop(up); drop(down) })
	})
}

func (p *pipeStream) Context() context.Context { return p.ctx }

func (p *pipeStream) SendMsg(m any) error {
	if !assert.True(p.t, p.sending.TryLock(), "two calls of SendMsg at once") {
		return io.ErrClosedPipe
	}
	defer p.sending.Unlock()
	select {
	case <-p.mayOut:
		return errors.New("SendMsg after the end of sending")
	default:
	}
	data, err := tunnel.Codec{}.Marshal(m)
	if err != nil {
		return err
	}
	select {
	case p.out <- data:
		if p.ctx.Err() != nil { // nobody else will
			drop(p.out)
		}
		return nil
	case <-p.over:
	case <-p.ctx.Done():
	}
	data.Free()
	return io.EOF
}

func (p *pipeStream) RecvMsg(m any) error {
	for {
		select {
		case data := <-p.in:
			defer data.Free()
			return tunnel.Codec{}.Unmarshal(data, m)
		case <-p.ctx.Done():
			drop(p.in)
			return p.ctx.Err()
		case <-p.mayIn:
			if len(p.in) == 0 {
				return io.EOF
			}
		}
	}
}

// drop frees what is on its way.
func drop(way chan mem.BufferSlice) {
	for {
		select {
		case data := <-way:
			data.Free()
		default:
			return
		}
	}
}

// pipeClient is the end that can half-close.
type pipeClient struct{ *pipeStream }

func (p pipeClient) CloseSend() error {
	if assert.True(p.t, p.sending.TryLock(), "CloseSend during SendMsg") {
		defer p.sending.Unlock()
	}
	p.once.Do(func() { close(p.mayOut) })
	return nil
}

// pipedPair is both ends of a tunnel through a relay between two pipes.
func pipedPair(t testing.TB, options ...tunnel.Option) (near, far *tunnel.Conn) {
	t.Helper()
	agent, fromAgent, cancelAgent, retAgent := pipe(t)
	laptop, toLaptop, cancelLaptop, retLaptop := pipe(t)
	go func() {
		defer retAgent()
		defer retLaptop()
		open, err := tunnel.RecvOpen(fromAgent)
		if err == nil {
			err = tunnel.SendOpen(toLaptop, open)
		}
		if err == nil {
			_ = tunnel.Relay(fromAgent, toLaptop)
		}
	}()
	near, err := tunnel.Open(pipeClient{agent}, &tunnelpb.Open{},
		append(options, tunnel.OnClose(cancelAgent))...)
	require.NoError(t, err)
	_, far, err = tunnel.Accept(pipeClient{laptop}, append(options, tunnel.OnClose(cancelLaptop))...)
	require.NoError(t, err)
	require.NoError(t, far.Answer(tunnelpb.Opened_OK, ""))
	return near, far
}

// deaf is a stream whose sending fails from the second message on, as one does whose peer has just ended it.
type deaf struct {
	*pipeStream
	sent int
}

func (d *deaf) SendMsg(m any) error {
	if d.sent++; d.sent > 1 {
		return io.EOF
	}
	return d.pipeStream.SendMsg(m)
}

func TestAnEndThatCannotBeSentIsAReset(t *testing.T) {
	stream, _, cancel, ret := pipe(t)
	defer ret()
	defer cancel()
	c, err := tunnel.Open(&deaf{pipeStream: stream}, &tunnelpb.Open{})
	require.NoError(t, err)
	for range 2 { // it was not sent, so it is tried again
		assert.ErrorIs(t, c.CloseWrite(), syscall.ECONNRESET)
	}
}
