// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

func TestFramesAreFoundHoweverTheyAreCut(t *testing.T) {
	type frame struct {
		id     uint32
		length int
	}
	var wire bytes.Buffer
	framer := http2.NewFramer(&wire, nil)
	random := rand.New(rand.NewPCG(1, 2))
	var sent []frame
	for i := range uint32(100) {
		sent = append(sent, frame{2*i + 1, random.IntN(1 + 16<<10*(int(i)%2))})
		require.NoError(t, framer.WriteData(2*i+1, false, make([]byte, sent[i].length)))
	}
	for range 50 {
		f := frames{}
		var found []frame
		for rest := wire.Bytes(); len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(random.IntN(20<<10)+1))
			f.scan(rest[:n], func(_ http2.FrameType, id uint32, length int) {
				found = append(found, frame{id, length})
			})
			rest = rest[n:]
		}
		require.Equal(t, sent, found)
	}
}

// clients serves Accept: what comes is read when the test says so, and sent back.
type clients struct {
	clientpb.UnimplementedClientsServer
	gate  *Gate
	peer  string
	read  chan struct{}
	begun chan error
}

func (s *clients) Accept(stream grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) (err error) {
	From(stream.Context()).Prove(s.peer)
	defer func() { s.begun <- err }()
	for {
		select {
		case <-s.read:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		var f tunnel.Frame
		if err := stream.RecvMsg(&f); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&f); err != nil {
			return err
		}
		f.Free()
	}
}

// serve returns a client of a server behind a gate that lets all calls hold so much.
func serve(t *testing.T, memory int64) (*clients, clientpb.ClientsClient) {
	t.Helper()
	s := &clients{gate: gate(Limits{Memory: memory}), peer: "alice", read: make(chan struct{}, 1000),
		begun: make(chan error, 1000)}
	https := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(https.Close)
	config := &tls.Config{Certificates: https.TLS.Certificates, NextProtos: []string{"h2"}}
	options := append(tunnel.ServerOptions(), s.gate.ServerOptions(credentials.NewTLS(config))...)
	server := grpc.NewServer(options...)
	clientpb.RegisterClientsServer(server, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(s.gate.Listener(l)) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	conn, err := grpc.NewClient(l.Addr().String(), append(tunnel.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return s, clientpb.NewClientsClient(conn)
}

func (s *clients) holds(t *testing.T, atLeast, atMost int64) {
	t.Helper()
	require.Eventually(t, func() bool { n := s.gate.heldInAll.Load(); return n >= atLeast && n <= atMost },
		10*time.Second, time.Millisecond, "from %d to %d", atLeast, atMost)
}

func data(n int) *tunnel.Frame {
	return &tunnel.Frame{Kind: tunnelpb.Frame_DATA, Data: mem.BufferSlice{mem.SliceBuffer(make([]byte, n))}}
}

func TestWhatCallsHoldIsCountedExactly(t *testing.T) {
	s, c := serve(t, 100<<20)
	stream, err := c.Accept(t.Context())
	require.NoError(t, err)
	const each, n = 100_000, 20
	for range n {
		require.NoError(t, stream.SendMsg(data(each)))
	}
	s.holds(t, callMass+n*each, callMass+n*each*3/2)
	for range n {
		s.read <- struct{}{}
	}
	for range n {
		var f tunnel.Frame
		require.NoError(t, stream.RecvMsg(&f))
		f.Free()
	}
	s.holds(t, callMass, callMass)
	require.NoError(t, stream.CloseSend())
	s.read <- struct{}{}
	require.NoError(t, <-s.begun)
	s.holds(t, 0, 0)

	ctx, cancel := context.WithCancel(t.Context())
	stream, err = c.Accept(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(data(each)))
	s.holds(t, callMass+each, 2*callMass+each)
	cancel()
	require.Error(t, <-s.begun)
	s.holds(t, 0, 0)
}

func TestBeyondTheBudgetTheOneThatHoldsTheMostEndsAndOthersGoOn(t *testing.T) {
	s, c := serve(t, 2<<20)
	slow, err := c.Accept(t.Context())
	require.NoError(t, err)
	require.NoError(t, slow.SendMsg(data(100_000)))
	s.holds(t, 100_000, 1<<20)
	greedy, err := c.Accept(t.Context())
	require.NoError(t, err)
	for err == nil {
		err = greedy.SendMsg(data(100_000))
	}
	require.Error(t, <-s.begun)
	s.holds(t, 100_000, 1<<20)
	s.read <- struct{}{}
	var f tunnel.Frame
	require.NoError(t, slow.RecvMsg(&f))
	assert.Equal(t, 100_000, f.Data.Len())
	f.Free()
}

func TestAPeerHasAsManyCallsAsAreStillFree(t *testing.T) {
	const calls = 300
	s, c := serve(t, calls*callMass)
	for range calls / 2 {
		_, err := c.Accept(t.Context())
		require.NoError(t, err)
	}
	s.holds(t, calls/2*callMass, calls/2*callMass)
	refused, err := c.Accept(t.Context())
	require.NoError(t, err)
	var f tunnel.Frame
	assert.Equal(t, codes.ResourceExhausted, status.Code(refused.RecvMsg(&f)))
	s.holds(t, calls/2*callMass, calls/2*callMass)
	other := &holder{}
	assert.True(t, s.gate.mayCall(other))
	other.calls.Store(freeCalls)
	other.held.Store(calls / 2 * callMass)
	assert.False(t, s.gate.mayCall(other))
}

func TestTheOldestOfAPeersConnectionsEndsBeyondItsBound(t *testing.T) {
	g := gate(Limits{Memory: 1 << 20})
	_, first, _ := dial(g, "a")
	for c := range g.open {
		c.Prove("alice")
	}
	var last *Conn
	for range peerConns {
		last, _, _ = dial(g, "a")
		last.Prove("alice")
	}
	assert.True(t, first.closed.Load())
	assert.Len(t, g.open, peerConns)
	for c := range g.open {
		require.NoError(t, c.Close())
	}
	assert.Empty(t, g.holders)
	assert.Zero(t, g.heldInAll.Load())
}
