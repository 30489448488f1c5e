// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/steer"
)

const udpPort = 5353

// hang up is what makes the laptop end a flow as one does on which nothing listens.
const hangUp = "hang up"

// echoDatagrams is the laptop: it answers each datagram with "laptop " and the same.
func echoDatagrams(c *tunnel.Conn) error {
	var in, out []byte
	for {
		var err error
		if in, err = tunnel.ReadDatagram(c, in); err != nil {
			return err
		}
		if string(in) == hangUp {
			c.Reset("nothing listens")
			return nil
		}
		if out, err = tunnel.WriteDatagram(c, append([]byte("laptop "), in...), out); err != nil {
			return err
		}
	}
}

// serveDatagrams starts an app that answers each datagram with "app " and the same, as most do: on
// a socket of all addresses.
func serveDatagrams(t *testing.T, ns *netns.Namespace, network string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	require.NoError(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP(network, &net.UDPAddr{Port: udpPort})
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(append([]byte("app "), buffer[:n]...), from)
		}
	}()
	return c
}

// dialUDP gives a socket that takes answers from nowhere but the address that it asks.
func dialUDP(t *testing.T, ns *netns.Namespace, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c net.Conn
	require.NoError(t, ns.Do(func() (err error) {
		c, err = net.Dial("udp", to.String())
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

// askUDP sends a datagram until it is answered, as clients of UDP do, and gives the answer.
func askUDP(c net.Conn, question string) (string, error) {
	buffer := make([]byte, 1<<16)
	var err error
	for range 10 {
		if _, err = c.Write([]byte(question)); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		var n int
		if n, err = c.Read(buffer); err == nil {
			return string(buffer[:n]), nil
		}
	}
	return "", err
}

// askLaptop asks until the laptop answers: on a machine that is so slow that a heartbeat or a
// tunnel is late, the app does meanwhile.
func askLaptop(t *testing.T, c net.Conn, question string) {
	t.Helper()
	var got string
	for range 30 {
		var err error
		if got, err = askUDP(c, question); !assert.NoError(t, err) {
			return
		}
		if got != "app "+question {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	assert.True(t, got == "laptop "+question, "%d bytes were answered with %d bytes, %.20q…",
		len(question), len(got), got)
}

// wantsUDP is the pod with an intercept of its UDP port.
func (w *world) wantsUDP(connected bool) *agentpb.Pod {
	pod := w.wants()
	pod.Targets = nil
	pod.UdpTargets = []*agentpb.Target{{Port: udpPort, Rules: []*agentpb.Rule{{
		InterceptUid: "i-udp", InterceptNamespace: "shop", InterceptName: "dns", Tcp: true,
		Connected: connected,
	}}}}
	return pod
}

// answers waits until who answers a new client, at both addresses of the pod.
func (w *world) answers(t *testing.T, who string) {
	t.Helper()
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		require.Eventually(t, func() bool {
			got, err := askUDP(dialUDP(t, w.node.Namespace, netip.AddrPortFrom(ip, udpPort)), "hello")
			return err == nil && got == who+" hello"
		}, 30*time.Second, 20*time.Millisecond, "%s answers at %s", who, ip)
	}
}

func TestDatagramsGoToTheLaptop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveDatagrams(t, w.pod.Namespace, "udp")
	w.spawn(t)
	w.answers(t, "app")
	pod := w.wantsUDP(true)
	pod.Targets = w.wants().Targets
	w.steering(t, w.assign(pod))
	addresses := []netip.Addr{w.pod.IP4, w.pod.IP6}

	t.Run("of a hundred clients, each of which gets its own answers from the address that it asked",
		func(t *testing.T) {
			var clients sync.WaitGroup
			for i := range 100 {
				c := dialUDP(t, w.node.Namespace, netip.AddrPortFrom(addresses[i%2], udpPort))
				clients.Go(func() {
					for n := range 5 {
						askLaptop(t, c, fmt.Sprintf("%d of client %d", n, i))
					}
				})
			}
			clients.Wait()
		})
	t.Run("of any size", func(t *testing.T) {
		for _, ip := range addresses {
			c := dialUDP(t, w.node.Namespace, netip.AddrPortFrom(ip, udpPort))
			for _, size := range []int{0, 1, 1400, 1500, 9000, 65000} {
				question := make([]byte, size)
				_, _ = rand.Read(question)
				askLaptop(t, c, string(question))
			}
		}
	})
	t.Run("and from the pod itself to the app", func(t *testing.T) {
		for _, ip := range addresses {
			got, err := askUDP(dialUDP(t, w.pod.Namespace, netip.AddrPortFrom(ip, udpPort)), "me")
			require.NoError(t, err)
			assert.Equal(t, "app me", got)
		}
	})
	t.Run("and TCP where it goes", func(t *testing.T) {
		w.eventually(t, "me", "laptop")
		w.eventually(t, "", "app")
	})
	w.await(t, "what was counted", func(r *agentpb.Report) bool {
		return len(r.GetTargets()) == 2 && r.GetTargets()[1].GetMatched() >= 100
	})
}

func TestAppGetsDatagramsThatTheLaptopCannotTake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveDatagrams(t, w.pod.Namespace, "udp")
	agent := w.spawn(t)
	w.steering(t, w.assign(w.wantsUDP(true)))
	w.answers(t, "laptop")
	// once asks one time.
	once := func(t *testing.T, ip netip.Addr, question string) string {
		c := dialUDP(t, w.node.Namespace, netip.AddrPortFrom(ip, udpPort))
		_, err := c.Write([]byte(question))
		require.NoError(t, err)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		buffer := make([]byte, 1<<16)
		n, err := c.Read(buffer)
		require.NoError(t, err)
		return string(buffer[:n])
	}
	long := strings.Repeat("long ", 2000)

	t.Run("with a laptop that refuses, not one is lost", func(t *testing.T) {
		w.laptop(true, false)
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			assert.Equal(t, "app "+long, once(t, ip, long))
		}
	})
	t.Run("and the laptop has them again when it is back", func(t *testing.T) {
		w.laptop(false, false)
		w.answers(t, "laptop")
	})
	t.Run("with a laptop that does not answer, not one is lost", func(t *testing.T) {
		w.laptop(false, true)
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			require.Eventually(t, func() bool {
				began := time.Now()
				assert.Equal(t, "app "+long, once(t, ip, long))
				return time.Since(began) > 1500*time.Millisecond
			}, 30*time.Second, 10*time.Millisecond, "the laptop was waited for")
		}
		w.laptop(false, false)
		w.answers(t, "laptop")
	})
	t.Run("with a laptop that is known to be away", func(t *testing.T) {
		w.steering(t, w.assign(w.wantsUDP(false)))
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			assert.Equal(t, "app "+long, once(t, ip, long))
		}
		w.steering(t, w.assign(w.wantsUDP(true)))
		w.answers(t, "laptop")
	})
	t.Run("with a flow that the laptop ends because nothing listens any more", func(t *testing.T) {
		c := dialUDP(t, w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, udpPort))
		askLaptop(t, c, "hello")
		got, err := askUDP(c, hangUp)
		require.NoError(t, err)
		require.Equal(t, "app "+hangUp, got)
		w.answers(t, "laptop")
	})
	t.Run("with a manager that is gone", func(t *testing.T) {
		address := w.address
		w.stop()
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			assert.Equal(t, "app "+long, once(t, ip, long))
		}
		w.start(t, address)
		w.answers(t, "laptop")
	})
	t.Run("with a node agent that hangs", func(t *testing.T) {
		require.NoError(t, agent.Process.Signal(syscall.SIGSTOP))
		w.answers(t, "app")
		require.NoError(t, agent.Process.Signal(syscall.SIGCONT))
		w.answers(t, "laptop")
	})
	t.Run("with a node agent that is killed", func(t *testing.T) {
		agent.kill(t)
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			assert.Equal(t, "app "+long, once(t, ip, long))
		}
		w.spawn(t)
		w.answers(t, "laptop")
	})
	t.Run("and after the intercept", func(t *testing.T) {
		w.assign()
		w.answers(t, "app")
	})
}

func TestConnectedSocketsOfTheAppKeepTheirDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	app := serveDatagrams(t, w.pod.Namespace, "udp")
	w.run(t)
	c := dialUDP(t, w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, udpPort))
	got, err := askUDP(c, "hello")
	require.NoError(t, err)
	require.Equal(t, "app hello", got)
	// As servers of DTLS do: a socket for each client, beside the one for all.
	require.NoError(t, app.Close())
	var own net.Conn
	require.Eventually(t, func() bool { // what reads from the other socket may hold it for a moment
		return w.pod.Do(func() (err error) {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.pod.IP4, udpPort))}
			own, err = d.DialContext(context.Background(), "udp", c.LocalAddr().String())
			return err
		}) == nil
	}, 20*time.Second, time.Millisecond)
	defer own.Close()
	w.steering(t, w.assign(w.wantsUDP(true)))
	_, err = c.Write([]byte("still yours"))
	require.NoError(t, err)
	buffer := make([]byte, 100)
	require.NoError(t, own.SetReadDeadline(time.Now().Add(20*time.Second)))
	n, err := own.Read(buffer)
	require.NoError(t, err)
	assert.Equal(t, "still yours", string(buffer[:n]))
	w.answers(t, "laptop")
}

func TestDatagramsAreNotSteeredByTC(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.datapath = steer.TC
	serveDatagrams(t, w.pod.Namespace, "udp")
	w.run(t)
	pod := w.wantsUDP(true)
	pod.Targets = w.wants().Targets
	w.assign(pod)
	r := w.await(t, "a refusal",
		func(r *agentpb.Report) bool { return len(r.GetTargets()) == 2 && r.GetTargets()[1].GetFailed() })
	assert.Contains(t, r.GetTargets()[1].GetMessage(), "UDP is steered by sk_lookup alone")
	w.await(t, "TCP is steered", func(r *agentpb.Report) bool { return r.GetTargets()[0].GetSteering() })
	w.answers(t, "app")
}
