// SPDX-License-Identifier: Apache-2.0

package deliver_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/client/deliver"
	"sidestep.dev/sidestep/internal/tunnel"
)

const patience = 20 * time.Second

// manager parks streams and opens tunnels on them.
type manager struct {
	clientpb.UnimplementedClientsServer
	parked  chan clientpb.Clients_AcceptServer
	waiting atomic.Int32
	refuse  atomic.Bool
	refused atomic.Int32
	first   []byte // the first datagram of tunnels that carry datagrams
}

func (m *manager) Accept(stream clientpb.Clients_AcceptServer) error {
	if m.refuse.Load() {
		m.refused.Add(1)
		return status.Error(codes.Unavailable, "not now")
	}
	m.waiting.Add(1)
	m.parked <- stream
	<-stream.Context().Done()
	return nil
}

func (m *manager) open(t testing.TB) (*tunnel.Conn, *tunnelpb.Opened) {
	var stream clientpb.Clients_AcceptServer
	select {
	case stream = <-m.parked:
		m.waiting.Add(-1)
	case <-time.After(patience):
		require.Fail(t, "no stream is parked")
	}
	conn, err := tunnel.Open(stream, &tunnelpb.Open{InterceptUid: "uid", Datagrams: m.first != nil})
	require.NoError(t, err)
	if m.first != nil {
		_, err := tunnel.WriteDatagram(conn, m.first, nil)
		require.NoError(t, err)
	}
	opened, err := conn.Opened(t.Context())
	require.NoError(t, err)
	return conn, opened
}

// to is a target for everything.
type to string

func (a to) Target(context.Context, *tunnelpb.Open) string { return string(a) }
func (a to) Knows(context.Context, *tunnelpb.Open) bool    { return a != "" }

// pool runs a Pool against a manager; stop ends it and waits.
func pool(t *testing.T, target to) (m *manager, wants chan uint32, stop func()) {
	m = &manager{parked: make(chan clientpb.Clients_AcceptServer, 1000)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	clientpb.RegisterClientsServer(server, m)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(),
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	wants = make(chan uint32)
	var running sync.WaitGroup
	running.Go(func() {
		deliver.NewPool(clientpb.NewClientsClient(conn), target, slog.New(slog.DiscardHandler)).Run(ctx,
			nil, wants)
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = conn.Close()
		server.Stop()
	})
	t.Cleanup(stop)
	return m, wants, stop
}

// process is a local process.
func process(t testing.TB, network, addr string, serve func(*net.TCPConn)) *net.TCPAddr {
	listener, err := net.Listen(network, addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn.(*net.TCPConn))
		}
	}()
	return listener.Addr().(*net.TCPAddr)
}

// late answers with all it got once it has got all.
func late(c *net.TCPConn) {
	defer c.Close()
	all, _ := io.ReadAll(c)
	_, _ = c.Write(all)
}

func TestBytes(t *testing.T) {
	addr := process(t, "tcp", "127.0.0.1:0", late)
	m, _, _ := pool(t, to(addr.String()))
	conn, opened := m.open(t)
	require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	for part := range slices.Chunk(sent, 50_000) {
		_, err := conn.Write(part)
		require.NoError(t, err)
	}
	require.NoError(t, conn.CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.True(t, slices.Equal(sent, got), "%d bytes came back", len(got))
}

func TestAResetOfTheProcessIsAReset(t *testing.T) {
	addr := process(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
		_ = c.Close()
	})
	m, _, _ := pool(t, to(addr.String()))
	conn, _ := m.open(t)
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadAll(conn)
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAProcessOnTheOtherLoopbackIsFound(t *testing.T) {
	six := process(t, "tcp6", "[::1]:0", late)
	m, _, _ := pool(t, to((&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: six.Port}).String()))
	_, opened := m.open(t)
	assert.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
}

func TestThePoolGrowsWithDemand(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	addr := process(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { <-hold; _ = c.Close() })
	m, wants, _ := pool(t, to(addr.String()))
	waiting := func(n int32) func() bool { return func() bool { return m.waiting.Load() == n } }
	require.Eventually(t, waiting(8), patience, time.Millisecond, "eight to begin with")
	wants <- 30
	require.Eventually(t, waiting(38), patience, time.Millisecond, "as many more as are wanted")
	wants <- 100_000
	require.Eventually(t, waiting(256), patience, time.Millisecond, "up to a limit")
	m.open(t)
	require.Eventually(t, waiting(256), patience, time.Millisecond, "one that was used is replaced")
}

func TestAManagerThatTakesNoStreamsIsNotHammered(t *testing.T) {
	addr := process(t, "tcp", "127.0.0.1:0", late)
	m := &manager{parked: make(chan clientpb.Clients_AcceptServer, 1000)}
	m.refuse.Store(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	clientpb.RegisterClientsServer(server, m)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(),
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go deliver.NewPool(clientpb.NewClientsClient(conn), to(addr.String()),
		slog.New(slog.DiscardHandler)).Run(ctx, nil, nil)
	require.Eventually(t, func() bool { return m.refused.Load() >= 16 }, patience, time.Millisecond,
		"it tries again")
	assert.LessOrEqual(t, m.refused.Load(), int32(24), "after a pause")
	m.refuse.Store(false)
	require.Eventually(t, func() bool { return m.waiting.Load() == 8 }, patience, time.Millisecond,
		"and is well when the manager is")
}

func TestConnectionsEndWithTheOneToTheManager(t *testing.T) {
	ended := make(chan error, 1)
	addr := process(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.ReadAll(c)
		ended <- err
	})
	m, _, stop := pool(t, to(addr.String()))
	_, opened := m.open(t)
	require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
	stop()
	select {
	case err := <-ended:
		assert.True(t, err == nil || errors.Is(err, syscall.ECONNRESET), "%v", err)
	case <-time.After(patience):
		require.Fail(t, "the process still has its connection")
	}
}
