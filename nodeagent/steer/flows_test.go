// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// dialFrom connects from a port of the node.
func (w *world) dialFrom(t *testing.T, port uint16, to netip.Addr) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var c net.Conn
	require.NoError(t, w.node.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)},
			Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET,
						unix.SO_REUSEADDR, 1)
				})
			}}
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 8080).String())
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func wordOf(t *testing.T, c net.Conn) string {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	word, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(word)
}

// A client may reuse the addresses of a connection while the pod's side is still in TIME_WAIT. The
// kernel must find that socket before anything else, so TC leaves such connections to the app.
func TestConnectionThatFollowsOneInTimeWaitIsServedAtOnce(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		second := "app"
		if w.datapath == steer.SkLookup {
			second = "agent"
		}
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			require.Equal(t, "app", ask(t, w.node.Namespace, ip), "each has found the other")
		}
		first := "app"
		var a *agent
		for i := range 4 {
			for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
				began := time.Now()
				c := w.dialFrom(t, 40001, ip)
				assert.Equal(t, first, wordOf(t, c), "connection %d to %s", i, ip)
				assert.Less(t, time.Since(began), 900*time.Millisecond, "its first SYN was answered")
				// The pod's side closes first, and so has the socket in TIME_WAIT.
				_, err := c.Read(make([]byte, 1))
				require.Error(t, err)
				require.NoError(t, c.Close())
			}
			if i == 0 {
				a = w.start(t, "agent")
				first = second
			}
		}
		outcomes, err := a.program.Outcomes()
		require.NoError(t, err)
		if w.datapath == steer.SkLookup {
			assert.Equal(t, uint64(6), outcomes[bpf.Steered])
		} else {
			assert.Equal(t, map[bpf.Outcome]uint64{bpf.Steered: 0, bpf.AgentSilent: 0,
				bpf.NoListener: 0, bpf.NotAssigned: 0, bpf.TimeWait: 6}, outcomes)
		}
	})
}

func TestOpenConnectionsAreLeftAlone(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		echo := testnet.Listen(t, w.pod.Namespace, ":8081")
		go func() {
			for {
				c, err := echo.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		var open []net.Conn
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			for range 8 {
				c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(ip, 8081))
				require.NoError(t, err)
				defer c.Close()
				open = append(open, c)
			}
		}
		a := w.start(t, "agent")
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			require.NoError(t, a.program.Add(netip.AddrPortFrom(ip, 8081)))
		}
		sent := make([]byte, 1<<20)
		var all sync.WaitGroup
		for _, c := range open {
			all.Go(func() {
				got := make([]byte, len(sent))
				go func() { _, _ = c.Write(sent) }()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, err := io.ReadFull(c, got)
				assert.NoError(t, err)
				assert.NoError(t, c.(*net.TCPConn).CloseWrite())
				_, err = c.Read(got)
				assert.ErrorIs(t, err, io.EOF, "its end arrives, and no reset")
			})
		}
		all.Wait()
		c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, 8081))
		require.NoError(t, err)
		defer c.Close()
		assert.Equal(t, "agent", wordOf(t, c), "a new one is steered")
	})
}

// Handshakes that have begun before the program goes, or before another agent's comes, end where
// they began.
func TestNoConnectionIsLostWhileAgentsChange(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			require.Equal(t, "app", ask(t, w.node.Namespace, ip))
		}
		stop := make(chan struct{})
		words := map[string]int{}
		var mu sync.Mutex
		var clients sync.WaitGroup
		for i := range 4 {
			ip := []netip.Addr{w.pod.IP4, w.pod.IP6}[i%2]
			clients.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					word := ask(t, w.node.Namespace, ip)
					mu.Lock()
					words[word]++
					mu.Unlock()
				}
			})
		}
		for i := range 6 {
			a := w.start(t, "agent")
			seen := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return words["agent"] >= 20*(i+1)
			}
			assert.Eventually(t, seen, 30*time.Second, time.Millisecond)
			if i%2 == 1 {
				require.NoError(t, a.program.Detach()) // the listeners stay open
			}
		}
		close(stop)
		clients.Wait()
		delete(words, "agent")
		delete(words, "app")
		assert.Empty(t, words)
	})
}
