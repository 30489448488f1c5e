// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
)

func newPod(t testing.TB) (*testnet.Pod, *Namespace) {
	p := testnet.NewNode(t).NewPod(t)
	return p, &Namespace{Namespace: p.Namespace}
}

func TestListenersArePlainTCPWithLongQueues(t *testing.T) {
	_, ns := newPod(t)
	var most int
	require.NoError(t, ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/../../../sys/net/core/somaxconn")
		if err != nil {
			text, err = os.ReadFile("/proc/sys/net/core/somaxconn")
		}
		if err == nil {
			most, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	}))
	for _, home := range []string{"127.0.0.1", "::1"} {
		l, err := ns.Listen(netip.MustParseAddr(home))
		require.NoError(t, err)
		defer l.Close()
		raw, err := l.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
			assert.NoError(t, err)
			assert.Equal(t, unix.IPPROTO_TCP, protocol, "a sockmap refuses MPTCP")
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			assert.NoError(t, err)
			assert.EqualValues(t, most, info.Sacked, "the length of the accept queue")
		}))
	}
}

func TestDial(t *testing.T) {
	p, ns := newPod(t)
	for _, ip := range []netip.Addr{p.IP4, p.IP6} {
		app := testnet.Listen(t, p.Namespace, netip.AddrPortFrom(ip, 0).String())
		to := app.Addr().(*net.TCPAddr).AddrPort()
		var local netip.AddrPort
		c, err := ns.Dial(t.Context(), ip, to, func(a netip.AddrPort) { local = a })
		require.NoError(t, err)
		defer c.Close()
		accepted, err := app.Accept()
		require.NoError(t, err)
		defer accepted.Close()
		assert.Equal(t, local.String(), accepted.RemoteAddr().String(),
			"the address was known before the connection")
		assert.Equal(t, ip, local.Addr())
		_, err = io.WriteString(c, "hello")
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		got, err := io.ReadAll(accepted)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(got))
	}
}

func TestDialTellsWhyItFails(t *testing.T) {
	p, ns := newPod(t)
	_, err := ns.Dial(t.Context(), p.IP4, netip.AddrPortFrom(p.IP4, 1), nil)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)

	// A listener whose queue is full does not answer.
	fd := -1
	require.NoError(t, ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	require.NoError(t, unix.Bind(fd, sockaddr(netip.AddrPortFrom(p.IP4, 0))))
	require.NoError(t, unix.Listen(fd, 0))
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	to := addrPort(sa)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for err = error(nil); err == nil; {
		var c net.Conn
		if c, err = ns.Dial(ctx, p.IP4, to, nil); err == nil {
			defer c.Close()
		}
	}
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

// Only the listener's socket options are set.
func TestAcceptedConnectionsLookForDeadClientsAndLetTheAppBindItsPort(t *testing.T) {
	_, ns := newPod(t)
	for _, home := range []string{"127.0.0.1", "::1"} {
		l, err := ns.Listen(netip.MustParseAddr(home))
		require.NoError(t, err)
		defer l.Close()
		client, err := testnet.Dial(t.Context(), ns.Namespace, l.Addr().(*net.TCPAddr).AddrPort())
		require.NoError(t, err)
		defer client.Close()
		c, err := l.AcceptTCP()
		require.NoError(t, err)
		defer c.Close()
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, name, want int }{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			} {
				got, err := unix.GetsockoptInt(int(fd), o.level, o.name)
				assert.NoError(t, err)
				assert.Equal(t, o.want, got, "%s: option %d of %d", home, o.name, o.level)
			}
		}))
	}
}

// A client that closes first leaves its port behind for a minute; a busy pod would run out of them.
func TestPortsOfClosedConnectionsAreUsedAgain(t *testing.T) {
	p, ns := newPod(t)
	require.NoError(t, ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40099"), 0)
	}))
	for _, ip := range []netip.Addr{p.IP4, p.IP6} {
		app := testnet.Listen(t, p.Namespace, netip.AddrPortFrom(ip, 8080).String())
		go func() {
			for {
				c, err := app.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}()
			}
		}()
		start, most := time.Now(), 1000
		if testing.Short() {
			most = 300
		}
		for range most {
			c, err := ns.Dial(t.Context(), ip, netip.AddrPortFrom(ip, 8080), nil)
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			_, err = io.Copy(io.Discard, c)
			require.NoError(t, err)
			require.NoError(t, c.Close())
		}
		t.Logf("%s: %d connections over 100 ports in %s", ip, most, time.Since(start))
	}
}

func TestManyGoroutinesDialAndNoneIsLeftInThePod(t *testing.T) {
	p, ns := newPod(t)
	app := testnet.Listen(t, p.Namespace, netip.AddrPortFrom(p.IP4, 0).String())
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	to := app.Addr().(*net.TCPAddr).AddrPort()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 200 {
				c, err := ns.Dial(t.Context(), p.IP4, to, nil)
				if !assert.NoError(t, err) {
					return
				}
				_ = c.Close()
			}
		})
	}
	clients.Wait()
	there := fmt.Sprintf("net:[%d]", ns.Inode())
	tasks, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	for _, task := range tasks {
		if at, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil {
			assert.NotEqual(t, there, at)
		}
	}
}

func BenchmarkDial(b *testing.B) {
	p, ns := newPod(b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	app := testnet.Listen(b, p.Namespace, netip.AddrPortFrom(p.IP4, 0).String())
	for _, l := range []net.Listener{l, app} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = c.Read(make([]byte, 1))
					_ = c.Close()
				}()
			}
		}()
	}
	reset := func(c net.Conn, err error) {
		require.NoError(b, err)
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	b.Run("in the pod", func(b *testing.B) {
		for b.Loop() {
			c, err := ns.DialAs(b.Context(), p.IP4, app.Addr().(*net.TCPAddr).AddrPort(), nil)
			require.NoError(b, err)
			raw, err := c.SyscallConn()
			require.NoError(b, err)
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			})
			_ = c.Close()
		}
	})
	b.Run("plain, on loopback of this process", func(b *testing.B) {
		for b.Loop() {
			reset(net.Dial("tcp", l.Addr().String()))
		}
	})
	b.Run("a visit alone", func(b *testing.B) {
		for b.Loop() {
			_ = ns.Do(func() error { return nil })
		}
	})
}

func TestBytesThatAreThereAlreadyLeaveWithTheLastStepOfTheHandshake(t *testing.T) {
	p, ns := newPod(t)
	for _, ip := range []netip.Addr{p.IP4, p.IP6} {
		app := testnet.Listen(t, p.Namespace, netip.AddrPortFrom(ip, 0).String())
		to := app.Addr().(*net.TCPAddr).AddrPort()
		// says makes a connection, and tells how many segments it took to make it and say
		// something.
		says := func(soon bool, what string) (segments uint32) {
			c, err := ns.BeginAs(ip, to, soon, nil)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.Wait(t.Context()))
			assert.False(t, c.Pending())
			_, err = c.WriteString(what)
			require.NoError(t, err)
			raw, err := c.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, control(raw, func(fd int) error {
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				if err == nil {
					segments = info.Segs_out
				}
				return err
			}))
			accepted, err := app.Accept()
			require.NoError(t, err, "whether or not anything was said")
			defer accepted.Close()
			got := make([]byte, len(what))
			_, err = io.ReadFull(accepted, got)
			require.NoError(t, err)
			assert.Equal(t, what, string(got))
			return segments
		}
		assert.GreaterOrEqual(t, says(false, "hello"), uint32(3), "SYN, ACK and data")
		// The kernel waits for 200 ms, which may pass on a busy machine.
		assert.Eventually(t, func() bool { return says(true, "hello") == 2 }, 30*time.Second,
			time.Millisecond, "SYN, and ACK with data")
		says(true, "")
	}
}
