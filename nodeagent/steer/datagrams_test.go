// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// mailbox is a socket and the datagrams that it has received.
type mailbox struct {
	*net.UDPConn
	got chan string
}

func newMailbox(t *testing.T, ns *netns.Namespace, network, address string) *mailbox {
	t.Helper()
	m := &mailbox{got: make(chan string, 1000)}
	require.NoError(t, ns.Do(func() error {
		c, err := net.ListenPacket(network, address)
		if err == nil {
			m.UDPConn = c.(*net.UDPConn)
		}
		return err
	}))
	t.Cleanup(func() { _ = m.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			n, _, err := m.ReadFrom(buffer)
			if err != nil {
				return
			}
			m.got <- string(buffer[:n])
		}
	}()
	return m
}

// arrives sends a datagram and returns the name of the box that receives it.
func arrives(t *testing.T, from *netns.Namespace, to netip.AddrPort, boxes map[string]*mailbox) string {
	t.Helper()
	var c net.Conn
	require.NoError(t, from.Do(func() (err error) {
		c, err = net.Dial("udp", to.String())
		return err
	}))
	defer c.Close()
	text := "datagram " + strconv.FormatInt(time.Now().UnixNano(), 10)
	_, err := c.Write([]byte(text))
	require.NoError(t, err)
	deadline := time.After(20 * time.Second)
	for {
		for name, box := range boxes {
			select {
			case got := <-box.got:
				if got == text {
					return name
				}
			default:
			}
		}
		select {
		case <-deadline:
			return "nobody"
		case <-time.After(time.Millisecond):
		}
	}
}

func TestDatagramsAreSteered(t *testing.T) {
	whole := t
	w := newWorld(t, steer.SkLookup)
	app := newMailbox(t, w.pod.Namespace, "udp", ":8080")
	boxes := map[string]*mailbox{"app": app}
	addresses := []netip.Addr{w.pod.IP4, w.pod.IP6}
	// come waits until datagrams from a namespace come to a box, which a late heartbeat may delay.
	come := func(from *netns.Namespace, to netip.Addr, box, why string) {
		t.Helper()
		assert.Eventually(t, func() bool {
			return arrives(t, from, netip.AddrPortFrom(to, port),
				boxes) == box
		}, 30*time.Second, time.Millisecond, why)
	}
	for _, ip := range addresses {
		come(w.node.Namespace, ip, "app", "nobody steers")
	}
	a := w.start(t, "agent")
	for _, ip := range addresses {
		require.NoError(t, a.program.AddDatagrams(netip.AddrPortFrom(ip, port)))
		come(w.node.Namespace, ip, "app", "there is no socket for it")
	}
	for i, home := range []string{"127.0.0.1:0", "[::1]:0"} {
		name := []string{"agent4", "agent6"}[i]
		boxes[name] = newMailbox(t, w.pod.Namespace, []string{"udp4", "udp6"}[i], home)
		require.NoError(t, a.program.SetDatagrams(boxes[name].UDPConn))
		come(w.node.Namespace, addresses[i], name, "steered")
		come(w.pod.Namespace, addresses[i], "app", "from the pod to itself")
	}
	outcomes, err := a.program.DatagramOutcomes()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, outcomes[bpf.DatagramSteered], uint64(2))
	assert.GreaterOrEqual(t, outcomes[bpf.DatagramNoListener], uint64(2))
	assert.Zero(t, outcomes[bpf.DatagramNotAssigned])

	t.Run("and TCP connections to the same number are another target", func(t *testing.T) {
		require.NoError(t, a.program.Remove(netip.AddrPortFrom(w.pod.IP4, port)))
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		come(w.node.Namespace, w.pod.IP4, "agent4", "the UDP target is there still")
		require.NoError(t, a.program.Add(netip.AddrPortFrom(w.pod.IP4, port)))
		require.NoError(t, a.program.RemoveDatagrams(netip.AddrPortFrom(w.pod.IP4, port)))
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4))
		come(w.node.Namespace, w.pod.IP4, "app", "the UDP target is gone")
		require.NoError(t, a.program.AddDatagrams(netip.AddrPortFrom(w.pod.IP4, port)))
	})
	t.Run("but not when they come from a socket that the app has connected to", func(t *testing.T) {
		client := newMailbox(t, w.node.Namespace, "udp4", "198.18.1.1:0")
		var own net.Conn
		require.NoError(t, app.Close())
		require.Eventually(t, func() bool {
			return w.pod.Do(func() (err error) {
				d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.pod.IP4, port))}
				own, err = d.Dial("udp", client.LocalAddr().String())
				return err
			}) == nil
		}, 20*time.Second, time.Millisecond)
		_, err := client.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(w.pod.IP4, port))
		require.NoError(t, err)
		require.NoError(t, own.SetReadDeadline(time.Now().Add(20*time.Second)))
		buffer := make([]byte, 100)
		n, err := own.Read(buffer)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(buffer[:n]))
		require.NoError(t, own.Close())
		boxes["app"] = newMailbox(whole, w.pod.Namespace, "udp", ":8080")
	})
	t.Run("until the agent falls silent", func(t *testing.T) {
		a.fallSilent()
		for _, ip := range addresses {
			come(w.node.Namespace, ip, "app", "after a second without a beat")
		}
		require.NoError(t, a.node.Beat())
	})
	t.Run("until the agent is killed", func(t *testing.T) {
		for name, box := range boxes {
			if name != "app" {
				require.NoError(t, box.Close())
			}
		}
		a.kill(t)
		for _, ip := range addresses {
			assert.Equal(t, "app", arrives(t, w.node.Namespace, netip.AddrPortFrom(ip, port), boxes))
		}
	})
}

func TestDatagramsTakeTheSocketLookup(t *testing.T) {
	for _, d := range testnet.Datapaths(t) {
		w := newWorld(t, steer.Datapath(d))
		a := w.start(t, "agent")
		if steer.Datapath(d) == steer.SkLookup {
			assert.NoError(t, a.program.Datagrams())
		} else {
			assert.ErrorContains(t, a.program.Datagrams(), "this node steers by "+d)
		}
	}
}
