// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// from is a peer's connection.
type from struct {
	net.Conn
	address string
	closed  atomic.Bool
}

func (f *from) RemoteAddr() net.Addr { return name(f.address + ":1") }
func (f *from) Close() error         { f.closed.Store(true); return f.Conn.Close() }

type name string

func (name) Network() string  { return "tcp" }
func (n name) String() string { return string(n) }

func gate(limits Limits) *Gate {
	return New(limits, NewKnown(), NewMetrics(prometheus.NewRegistry()))
}

// dial lets a peer connect. The connection is nil if it was turned away.
func dial(g *Gate, address string) (c *Conn, raw *from, far net.Conn) {
	near, far := net.Pipe()
	raw = &from{Conn: near, address: address}
	return g.admit(raw), raw, far
}

func call(g *Gate, c *Conn, method string) (context.Context, error) {
	ctx := peer.NewContext(context.Background(), &peer.Peer{Addr: c.RemoteAddr()})
	return g.Tap(ctx, &tap.Info{FullMethodName: method})
}

func TestAConnectionIsLeftItsTimeToSayWhatItIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{Ungreeted: 2, Hasty: 2 * time.Second, Greeting: time.Minute})
		_, first, _ := dial(g, "a")
		_, second, _ := dial(g, "b")
		c, third, _ := dial(g, "c")
		assert.Nil(t, c, "it comes again later")
		assert.True(t, third.closed.Load())
		time.Sleep(2 * time.Second)
		c, _, _ = dial(g, "c")
		assert.NotNil(t, c)
		assert.True(t, first.closed.Load(), "the oldest")
		assert.False(t, second.closed.Load())
		var refused dto.Metric
		require.NoError(t, g.metrics.refusals.WithLabelValues(boundConnections).Write(&refused))
		assert.EqualValues(t, 2, refused.GetCounter().GetValue())
		require.True(t, c.Greet("a session"))
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.True(t, second.closed.Load(), "it has said nothing")
		assert.False(t, c.Conn.(*from).closed.Load())
		assert.False(t, c.Greet("another session"))
	})
}

func TestTheAddressWithTheMostConnectionsGivesWay(t *testing.T) {
	g := gate(Limits{Ungreeted: 4, Hasty: time.Hour})
	_, alone, _ := dial(g, "a")
	_, first, _ := dial(g, "b")
	for range 2 {
		dial(g, "b")
	}
	c, _, _ := dial(g, "c")
	assert.NotNil(t, c)
	assert.True(t, first.closed.Load())
	assert.False(t, alone.closed.Load())
}

func TestAnAddressHasItsOwnBound(t *testing.T) {
	g := gate(Limits{Address: 2, Hasty: time.Hour})
	for range 2 {
		dial(g, "a")
	}
	c, _, _ := dial(g, "a")
	assert.Nil(t, c)
	c, _, _ = dial(g, "b")
	assert.NotNil(t, c)
}

func TestStrangersGiveWayToWhoComesFromAKnownAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{Ungreeted: 3, Hasty: time.Second})
		c, _, _ := dial(g, "api")
		c.Prove("a peer")
		for _, stranger := range []string{"a", "b", "c"} {
			dial(g, stranger)
		}
		for range 3 {
			c, _, _ = dial(g, "api")
			assert.NotNil(t, c)
		}
		time.Sleep(time.Minute)
		c, _, _ = dial(g, "a")
		assert.Nil(t, c, "those of the known address stay")
		time.Sleep(knownFor)
		c, _, _ = dial(g, "a")
		assert.NotNil(t, c, "nobody has been proven there for long")
	})
}

func TestAConnectionIsNotReadBeyondItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{Burst: 10, Rate: 1})
		c, _, far := dial(g, "a")
		defer far.Close()
		go func() { _, _ = far.Write(make([]byte, 1000)) }()
		began := time.Now()
		b := make([]byte, 100)
		_, err := io.ReadFull(c, b[:20])
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(began), 9*time.Second, "ten at once, ten more at one a second")
		began = time.Now()
		time.AfterFunc(500*time.Millisecond, func() { c.Prove("a peer") })
		_, err = io.ReadFull(c, b)
		require.NoError(t, err)
		assert.LessOrEqual(t, time.Since(began), time.Second, "it is proven")

		c, _, _ = dial(g, "b")
		c.may = 0
		time.AfterFunc(500*time.Millisecond, func() { _ = c.Close() })
		_, err = c.Read(b)
		assert.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestAPeerThatTakesNothingLosesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{Slow: 10 * time.Second})
		c, _, far := dial(g, "a")
		_, err := c.Write([]byte("hello"))
		require.Error(t, err)
		c, _, far = dial(g, "b")
		c.Prove("a peer")
		time.AfterFunc(time.Minute, func() { _, _ = far.Read(make([]byte, 5)) })
		_, err = c.Write([]byte("hello"))
		assert.NoError(t, err, "a slow reader with an intercept is waited for")
	})
}

func TestCallsAreBoundedUntilAPeerIsProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{Calls: 3})
		c, raw, _ := dial(g, "a")
		for range sessionCalls {
			_, err := call(g, c, "/Clients/Session")
			require.NoError(t, err)
		}
		_, err := call(g, c, "/Clients/Session")
		assert.Equal(t, codes.ResourceExhausted, status.Code(err))
		_, err = call(g, c, "/Clients/Accept")
		require.NoError(t, err)
		for range refusals {
			_, err = call(g, c, "/Clients/Accept")
			assert.Equal(t, codes.ResourceExhausted, status.Code(err))
		}
		synctest.Wait()
		assert.True(t, raw.closed.Load(), "it does not stop")

		c, _, _ = dial(g, "a")
		c.Prove("a peer")
		for range 10 {
			_, err = call(g, c, "/Agents/Tunnel")
			assert.NoError(t, err)
		}
	})
}

func TestCallsAndBytesInAllEndThoseOfWhoHasTheMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(Limits{CallsInAll: 4, Held: 100, Burst: 1000})
		most, _, far := dial(g, "a")
		var calls []context.Context
		session, err := call(g, most, "/Clients/Session")
		require.NoError(t, err)
		for range 3 {
			ctx, err := call(g, most, "/Clients/Accept")
			require.NoError(t, err)
			calls = append(calls, ctx)
		}
		other, _, otherFar := dial(g, "b")
		kept, err := call(g, other, "/Clients/Accept")
		require.NoError(t, err)
		synctest.Wait()
		for _, ctx := range calls {
			assert.Error(t, ctx.Err())
		}
		assert.NoError(t, session.Err(), "sessions end by their timeout")
		assert.NoError(t, kept.Err())

		again, err := call(g, most, "/Clients/Accept")
		require.NoError(t, err)
		go func() { _, _ = otherFar.Write(make([]byte, 40)) }()
		go func() { _, _ = far.Write(make([]byte, 61)) }()
		_, err = io.ReadFull(other, make([]byte, 40))
		require.NoError(t, err)
		assert.NoError(t, again.Err())
		_, err = io.ReadFull(most, make([]byte, 61))
		require.NoError(t, err)
		assert.Error(t, again.Err())
		assert.NoError(t, kept.Err())
		assert.EqualValues(t, 40, g.held)
		for _, c := range []*Conn{most, other} {
			require.NoError(t, c.Close())
		}
		assert.Zero(t, g.held)
		assert.Zero(t, g.calls)
		assert.Empty(t, g.addresses)
	})
}

func TestWhatTheKernelDoesForAConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	inner := gate(HTTP()).Listener(l)
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer far.Close()
	c, err := inner.Accept()
	require.NoError(t, err)
	outer := gate(Laptops()).admit(c)
	defer outer.Close()
	assert.EqualValues(t, 5000, option(t, outer, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT))
	assert.Equal(t, "127.0.0.1", outer.Host())

	const locked = 2 // SOCK_RCVBUF_LOCK
	assert.EqualValues(t, 32<<10, option(t, outer, unix.SOL_SOCKET, unix.SO_RCVBUF), "the kernel doubles it")
	assert.EqualValues(t, locked, option(t, outer, unix.SOL_SOCKET, unix.SO_BUF_LOCK))
	outer.Prove("alice")
	assert.Zero(t, option(t, outer, unix.SOL_SOCKET, unix.SO_BUF_LOCK), "the kernel chooses")
}

func option(t *testing.T, c *Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	var failed error
	require.NoError(t, raw.Control(func(fd uintptr) {
		value, failed = unix.GetsockoptInt(int(fd), level, name)
	}))
	require.NoError(t, failed)
	return value
}
