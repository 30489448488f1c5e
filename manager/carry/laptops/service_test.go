// SPDX-License-Identifier: Apache-2.0

package laptops

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/manager/carry/parking"
)

// serve runs the service with quick pings, and returns a client and the registry.
func serve(t *testing.T) (clientpb.ClientsClient, *Registry) {
	return serveWith(t, 300*time.Millisecond)
}

// serveWith serves laptops that may be silent for so long.
func serveWith(t *testing.T, timeout time.Duration) (clientpb.ClientsClient, *Registry) {
	t.Helper()
	return serveConfig(t, Config{Timeout: timeout})
}

// serveConfig completes a configuration and serves by it.
func serveConfig(t *testing.T, cfg Config) (clientpb.ClientsClient, *Registry) {
	t.Helper()
	registry := NewRegistry(nobody)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	cfg.Registry, cfg.Log, cfg.Grace = registry, slog.New(slog.DiscardHandler), time.Minute
	cfg.Ping = 50 * time.Millisecond
	clientpb.RegisterClientsServer(server, NewService(cfg))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, server.Serve(listener)) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	conn, err := grpc.NewClient(listener.Addr().String(),
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return clientpb.NewClientsClient(conn), registry
}

func withKey(t *testing.T, b byte) (context.Context, string) {
	t.Helper()
	key := make([]byte, keySize)
	key[0] = b
	pairs := metadata.Pairs(names.SessionKeyMetadata, hex.EncodeToString(key))
	hash, err := keyHash(metadata.NewIncomingContext(t.Context(), pairs))
	require.NoError(t, err)
	return metadata.NewOutgoingContext(t.Context(), pairs), hash
}

func begin(t *testing.T, c clientpb.ClientsClient,
	ctx context.Context) grpc.BidiStreamingClient[clientpb.ClientMessage, clientpb.ManagerMessage] {
	t.Helper()
	s, err := c.Session(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{
			Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11", Holder: "alice@laptop", Protocol: 1,
		}}}))
	m, err := s.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 60, m.GetHello().GetGraceSeconds())
	return s
}

func TestSilentLaptopIsGivenUp(t *testing.T) {
	c, registry := serve(t)
	ctx, hash := withKey(t, 1)
	s := begin(t, c, ctx)
	assert.True(t, registry.Connected(hash))
	pings := 0
	for {
		m, err := s.Recv()
		if err != nil {
			assert.Equal(t, codes.DeadlineExceeded, status.Code(err))
			break
		}
		if m.GetPing() != nil {
			pings++
		}
	}
	assert.Greater(t, pings, 1)
	assert.False(t, registry.Connected(hash))
}

func TestALaptopWhoseAnswersAreBehindItsDataIsNotSilent(t *testing.T) {
	c, registry := serveWith(t, time.Second)
	ctx, hash := withKey(t, 1)
	begin(t, c, ctx)
	laptop, err := c.Accept(ctx)
	require.NoError(t, err)
	parked, err := registry.Take(ctx, hash, 5*time.Second)
	require.NoError(t, err)
	defer parked.Release(nil)
	received := make(chan error)
	go func() {
		for {
			var f tunnel.Frame
			err := parked.RecvMsg(&f)
			received <- err
			if err != nil {
				return
			}
			f.Free()
		}
	}()
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		require.NoError(t, laptop.Send(&tunnelpb.Frame{Data: []byte("x")}))
		require.NoError(t, <-received)
		require.True(t, registry.Connected(hash), "it was given up after %s", time.Since(began))
	}
	require.Eventually(t, func() bool { return !registry.Connected(hash) }, 5*time.Second,
		5*time.Millisecond, "it is silent now")
	require.NoError(t, laptop.CloseSend())
	assert.Error(t, <-received)
}

func TestLaptopThatAnswersStaysAndItsPingsAreAnswered(t *testing.T) {
	c, registry := serve(t)
	ctx, hash := withKey(t, 1)
	s := begin(t, c, ctx)
	require.NoError(t, s.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Ping{Ping: &clientpb.Ping{Id: 42}}}))
	var pong uint64
	for began := time.Now(); time.Since(began) < 700*time.Millisecond; {
		m, err := s.Recv()
		require.NoError(t, err)
		if p := m.GetPing(); p != nil {
			require.NoError(t, s.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: p}}))
		}
		pong = max(pong, m.GetPong().GetId())
	}
	assert.EqualValues(t, 42, pong)
	assert.True(t, registry.Connected(hash))
	require.NoError(t, s.CloseSend())
	require.Eventually(t, func() bool { return !registry.Connected(hash) }, 5*time.Second, 5*time.Millisecond)
}

func TestSessionsThatDoNotBeginRight(t *testing.T) {
	c, _ := serve(t)
	ctx, _ := withKey(t, 1)
	s, err := c.Session(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Ping{}}))
	_, err = s.Recv()
	assert.Equal(t, codes.InvalidArgument, status.Code(err), "no hello")

	s, err = c.Session(ctx)
	require.NoError(t, err)
	_, err = s.Recv()
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err), "nothing at all")

	s, err = c.Session(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{Protocol: 9, Version: "v9"}}}))
	_, err = s.Recv()
	assert.ErrorContains(t, err,
		"speaks protocol 1 and the client (v9) protocol 9: install the same version of both")

	a, err := c.Accept(ctx)
	require.NoError(t, err)
	_, err = a.Recv()
	assert.Equal(t, codes.FailedPrecondition, status.Code(err), "a stream without a session")
}

func TestParkedStreamsAreBoundedAndEndWithTheirSession(t *testing.T) {
	c, registry := serve(t)
	ctx, hash := withKey(t, 1)
	s := begin(t, c, ctx)
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				return
			}
			if p := m.GetPing(); p != nil {
				_ = s.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: p}})
			}
		}
	}()
	ends := make(chan error, limits.PerPeer+1)
	parked := registry.lot.Parked
	open := func() context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		a, err := c.Accept(ctx)
		require.NoError(t, err)
		go func() {
			_, err := a.Recv()
			ends <- err
		}()
		return cancel
	}
	for range unprovenStreams {
		open()
	}
	require.Eventually(t, func() bool { return parked() == unprovenStreams }, 5*time.Second, 5*time.Millisecond)
	open()
	assert.Equal(t, codes.ResourceExhausted, status.Code(<-ends), "it holds no intercept")
	registry.Prove(hash)
	var cancel context.CancelFunc
	for range limits.PerPeer - unprovenStreams {
		cancel = open()
	}
	require.Eventually(t, func() bool { return parked() == limits.PerPeer }, 5*time.Second, 5*time.Millisecond)
	open()
	assert.Equal(t, codes.ResourceExhausted, status.Code(<-ends))
	cancel()
	assert.Equal(t, codes.Canceled, status.Code(<-ends))
	require.Eventually(t, func() bool { return parked() == limits.PerPeer-1 }, 5*time.Second, 5*time.Millisecond)
	require.NoError(t, s.CloseSend())
	for range limits.PerPeer - 1 {
		assert.Equal(t, codes.Aborted, status.Code(<-ends))
	}
}

// idle is a stream on which nothing happens.
type idle struct {
	tunnel.Stream
	ctx context.Context
}

func (i idle) Context() context.Context { return i.ctx }

func (i idle) RecvMsg(any) error {
	<-i.ctx.Done()
	return i.ctx.Err()
}

// nobody holds an Intercept.
func nobody(string) bool { return false }

func TestConnectionThatWaitsGetsTheStreamOfTheNextSession(t *testing.T) {
	r := NewRegistry(nobody)
	old, err := r.begin("k", MaxSessions)
	require.NoError(t, err)
	taken := make(chan *parking.Stream)
	go func() {
		p, err := r.Take(t.Context(), "k", time.Minute)
		assert.NoError(t, err)
		taken <- p
	}()
	<-old.want
	next, err := r.begin("k", MaxSessions)
	require.NoError(t, err)
	<-old.gone
	<-next.want
	assert.Equal(t, 1, next.wanted(), "the new session is asked for what the old one owed")
	p, err := r.park("k", idle{ctx: t.Context()})
	require.NoError(t, err)
	assert.Same(t, p, <-taken)
	r.end(old)
	assert.True(t, r.Connected("k"), "the end of a session that was replaced is no news")
	r.end(next)
	assert.False(t, r.Connected("k"))
}

func TestTakingAStream(t *testing.T) {
	r := NewRegistry(nobody)
	_, err := r.Take(t.Context(), "k", time.Minute)
	require.ErrorIs(t, err, parking.ErrAbsent)
	s, err := r.begin("k", MaxSessions)
	require.NoError(t, err)
	_, err = r.Take(t.Context(), "k", time.Millisecond)
	require.ErrorIs(t, err, parking.ErrTimeout)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Take(gone, "k", time.Minute)
	require.ErrorIs(t, err, context.Canceled)
	dead, err := r.park("k", idle{ctx: gone})
	require.NoError(t, err)
	live, err := r.park("k", idle{ctx: t.Context()})
	require.NoError(t, err)
	p, err := r.Take(t.Context(), "k", time.Minute)
	require.NoError(t, err)
	assert.Same(t, live, p, "a stream whose laptop has left is passed over")
	assert.Equal(t, codes.Unavailable, status.Code(dead.Wait(nil)))

	result := make(chan error)
	go func() {
		_, err := r.Take(t.Context(), "k", time.Minute)
		result <- err
	}()
	<-s.want
	r.end(s)
	assert.ErrorIs(t, <-result, parking.ErrAbsent, "the laptop leaves while a connection waits for it")
}

func TestOneServiceLeavesSessionsToTheOther(t *testing.T) {
	r := NewRegistry(nobody)
	first, err := r.begin("a", 1)
	require.NoError(t, err)
	_, err = r.begin("b", 1)
	assert.ErrorIs(t, err, errFull)
	_, err = r.begin("b", 2)
	require.NoError(t, err)
	_, err = r.begin("a", 1)
	require.NoError(t, err, "a laptop that has come back takes nobody's place")
	r.end(first)
}
