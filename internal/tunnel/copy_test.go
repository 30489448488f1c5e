// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/tunnel"
)

func reset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	require.NoError(t, c.SetLinger(0))
	require.NoError(t, c.Close())
}

func TestATCPResetPassesThroughTheTunnel(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		tests := map[string]func(client, app *net.TCPConn) (from, to *net.TCPConn){
			"from the client to the app": func(client, app *net.TCPConn) (*net.TCPConn,
				*net.TCPConn) {
				return client, app
			},
			"from the app to the client": func(client, app *net.TCPConn) (*net.TCPConn,
				*net.TCPConn) {
				return app, client
			},
		}
		for name, ends := range tests {
			t.Run(name, func(t *testing.T) {
				client, app, agent, laptop := m.through(t)
				from, to := ends(client, app)
				_, err := from.Write([]byte("x"))
				require.NoError(t, err)
				_, err = io.ReadFull(to, make([]byte, 1))
				require.NoError(t, err)
				reset(t, from)
				_, err = to.Read(make([]byte, 1))
				assert.ErrorIs(t, err, syscall.ECONNRESET)
				assert.ErrorIs(t, soon(t, agent).err, syscall.ECONNRESET)
				assert.ErrorIs(t, soon(t, laptop).err, syscall.ECONNRESET)
			})
		}
	})
}

// A server may answer early and go, with the rest of the request unread: what it said must be
// readable.
func TestAResponseAheadOfAResetIsDelivered(t *testing.T) {
	m := newManager(t, overTLS)
	for range 20 {
		near, far := m.pair(t)
		client, steered := tcpPair(t)
		agent := make(chan error, 1)
		go func() {
			_, _, err := tunnel.Copy(steered, near)
			agent <- err
		}()
		_, err := far.Write([]byte("413"))
		require.NoError(t, err)
		far.Reset("the app has gone")
		response, err := io.ReadAll(client)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, "413", string(response))
		require.ErrorIs(t, soon(t, agent), syscall.ECONNRESET)
	}
}

// The same at the other end: the server's reset is seen by who writes the request before its
// response was read.
func TestAResponseAheadOfTheServersResetIsDelivered(t *testing.T) {
	m := newManager(t, overTLS)
	request := make([]byte, 64<<10)
	for range 200 {
		near, far := m.pair(t)
		server, local := tcpPair(t)
		laptop := make(chan error, 1)
		go func() {
			_, _, err := tunnel.Copy(local, far)
			laptop <- err
		}()
		go func() {
			for {
				if _, err := near.Write(request); err != nil {
					return
				}
			}
		}()
		_, err := io.ReadFull(server, make([]byte, 1000))
		require.NoError(t, err)
		_, err = server.Write([]byte("413"))
		require.NoError(t, err)
		require.NoError(t, server.Close()) // with something unread, and so by a reset
		response := make([]byte, 3)
		_, err = io.ReadFull(near, response)
		require.NoError(t, err)
		require.Equal(t, "413", string(response))
		require.Error(t, soon(t, laptop))
		near.Reset("end of test")
	}
}

func TestResettingATunnelFreesItsTCPConnectionThoughThePeerTakesNothing(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	client, app, agent, laptop := joined(t, near, far)
	_, ended := stall(t, app)
	near.Reset("the intercept ended")
	assert.Error(t, soon(t, agent).err)
	assert.Error(t, soon(t, laptop).err)
	assert.Error(t, soon(t, ended))
	_ = client.Close()
}

func TestADeadManagerResetsBothTCPConnections(t *testing.T) {
	for _, stalled := range []bool{false, true} {
		t.Run(fmt.Sprintf("stalled %v", stalled), func(t *testing.T) {
			m := newManager(t, overTLS)
			client, app, agent, laptop := m.through(t)
			appEnd := func() error { _, err := io.Copy(io.Discard, app); return err }
			if stalled {
				_, ended := stall(t, app)
				appEnd = func() error { return soon(t, ended) }
			}
			m.server.Stop()
			// A client that takes nothing hears of it when it has taken what arrived before.
			_, err := io.Copy(io.Discard, client)
			assert.ErrorIs(t, err, syscall.ECONNRESET)
			assert.ErrorIs(t, soon(t, agent).err, syscall.ECONNRESET)
			assert.ErrorIs(t, soon(t, laptop).err, syscall.ECONNRESET)
			assert.ErrorIs(t, appEnd(), syscall.ECONNRESET)
		})
	}
}

func TestADeadLaptopResetsTheClient(t *testing.T) {
	m := newManager(t, overTLS)
	client, _, agent, laptop := m.through(t)
	_ = m.laptop.Close()
	_, err := client.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	assert.ErrorIs(t, soon(t, agent).err, syscall.ECONNRESET)
	assert.ErrorIs(t, soon(t, laptop).err, syscall.ECONNRESET)
}

func TestWaitingForTheAnswerEnds(t *testing.T) {
	tests := map[string]struct {
		end  func(m *manager, near *tunnel.Conn, cancel context.CancelFunc)
		want error
	}{
		"when the caller gives up": {func(_ *manager, _ *tunnel.Conn,
			cancel context.CancelFunc) {
			cancel()
		}, context.Canceled},
		"when the connection is reset": {func(_ *manager, near *tunnel.Conn,
			_ context.CancelFunc) {
			near.Reset("test")
		}, syscall.ECONNRESET},
		"when the connection is closed": {func(_ *manager, near *tunnel.Conn,
			_ context.CancelFunc) {
			_ = near.Close()
		}, net.ErrClosed},
		"when the manager dies": {func(m *manager, _ *tunnel.Conn,
			_ context.CancelFunc) {
			go m.server.Stop()
		}, syscall.ECONNRESET},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, overTLS)
			defer m.server.Stop()
			near := m.open(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := near.Opened(ctx)
				ended <- err
			}()
			test.end(m, near, cancel)
			assert.ErrorIs(t, soon(t, ended), test.want)
			near.Reset("end of test")
		})
	}
}

func TestAThousandTunnelsAtOnce(t *testing.T) {
	m := newManager(t, overTLS)
	const tunnels = 1000
	var all sync.WaitGroup
	for i := range tunnels {
		near, far := m.pair(t)
		all.Go(func() { _, _ = io.Copy(far, far); _ = far.CloseWrite(); _ = far.Close() })
		all.Go(func() {
			defer func() { _ = near.Close() }()
			for round := range 3 {
				msg := fmt.Sprintf("tunnel %d round %d", i, round)
				if _, err := near.Write([]byte(msg)); !assert.NoError(t, err) {
					return
				}
				got := make([]byte, len(msg))
				_, err := io.ReadFull(near, got)
				if !assert.NoError(t, err) || !assert.Equal(t, msg, string(got)) {
					return
				}
			}
			assert.NoError(t, near.CloseWrite())
			_, err := near.Read(make([]byte, 1))
			assert.Equal(t, io.EOF, err)
		})
	}
	within(t, time.Minute, all.Wait)
}

func TestACloseDuringEverythingElseIsSafe(t *testing.T) {
	m := newManager(t, overTLS)
	for i := range 60 {
		near, far := m.pair(t)
		var all sync.WaitGroup
		for _, c := range []*tunnel.Conn{near, far} {
			all.Go(func() { _, _ = io.Copy(c, noise(1, 4<<20)) })
			all.Go(func() { _, _ = io.Copy(io.Discard, c) })
			all.Go(func() { _ = c.SetDeadline(time.Now().Add(time.Duration(i) * time.Millisecond)) })
			all.Go(func() { _ = c.CloseWrite() })
			all.Go(func() { c.Reset("race") })
			all.Go(func() { _ = c.Close() })
		}
		within(t, 20*time.Second, all.Wait)
	}
}

func TestAnAcceptOnAStreamThatEndsFails(t *testing.T) {
	m := newManager(t, overTLS)
	s, cancel := stream(t, m.laptop, "/test/Accept")
	go func() { (<-m.parked).done <- status.Error(codes.Aborted, "session replaced") }()
	called := make(chan struct{})
	_, _, err := tunnel.Accept(s, tunnel.OnClose(func() { cancel(); close(called) }))
	assert.ErrorContains(t, err, "session replaced")
	assert.False(t, errors.Is(err, io.EOF))
	soon(t, called)
}
