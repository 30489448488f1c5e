// SPDX-License-Identifier: Apache-2.0

package tcpstats_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

const (
	port  = 8080
	many  = 25
	bytes = 50_001
)

// each is many connections that ended as they should.
func each(n, in, out uint64) counts {
	return counts{Opened: n, Closed: n, Received: n * in, Sent: n * out}
}

func TestConnectionsAndBytesAreCountedExactly(t *testing.T) {
	for _, tc := range []struct {
		name, listen string
		ip           func(*testnet.Pod) netip.Addr
	}{
		{"IPv4", "0.0.0.0:8080", func(p *testnet.Pod) netip.Addr { return p.IP4 }},
		{"IPv6", "[::]:8080", func(p *testnet.Pod) netip.Addr { return p.IP6 }},
		{"IPv4 to a listener of both", ":8080", func(p *testnet.Pod) netip.Addr { return p.IP4 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, mode := range endings {
				t.Run(name, func(t *testing.T) {
					w := newWorld(t)
					w.start(t, tc.listen)
					h := w.hold(t)
					w.count(t, h, port)
					w.exchange(t, many, order{In: 1000, Out: bytes, Mode: mode}, w.outside, tc.ip(w.pod), port)
					becomes(t, h, port, ways{Direct: each(many, 1000, bytes)})
					w.exchange(t, many, order{In: bytes, Out: 1, Mode: mode}, w.pod.Namespace,
						tc.ip(w.pod), port)
					becomes(t, h, port, ways{Direct: each(many, 1000, bytes), Local: each(many, bytes, 1)})
				})
			}
		})
	}
}

func TestSteeredConnectionsAreKnownByTheirListener(t *testing.T) {
	for name, mode := range endings {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h := w.hold(t)
			w.count(t, h, port)
			for i, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
				w.steered(t, h, ip, port)
				w.exchange(t, many, order{In: 77, Out: bytes, Mode: mode}, w.outside, ip, port)
				becomes(t, h, port, ways{Steered: each(uint64(i+1)*many, 77, bytes)})
			}
			got, err := h.Traffic(port)
			require.NoError(t, err)
			assert.EqualValues(t, 2*many, got.Steered.RTT.Count)
			assert.Positive(t, got.Steered.RTT.Sum)
			var sum uint64
			for _, n := range got.Steered.RTT.Buckets {
				sum += n
			}
			assert.EqualValues(t, 2*many, sum)
			assert.Zero(t, got.Steered.Open())
		})
	}
}

func TestSteeredConnectionsAreCountedUnderSYNCookies(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.pod.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies",
			[]byte("2"), 0)
	}))
	h := w.hold(t)
	w.count(t, h, port)
	w.steered(t, h, w.pod.IP4, port)
	w.exchange(t, many, order{In: 77, Out: 78, Mode: clientFirst}, w.outside, w.pod.IP4, port)
	// With cookies, a repeated packet of a connection that has ended opens another one, which the
	// kernel then has and the client has not.
	require.Eventually(t, func() bool {
		got := traffic(t, h, port).Steered
		return got.Closed >= many && got.Received >= many*77 && got.Sent >= many*78
	}, 20*time.Second, 5*time.Millisecond)
	got := traffic(t, h, port)
	assert.GreaterOrEqual(t, got.Steered.Opened, got.Steered.Closed)
	assert.Equal(t, ways{Steered: got.Steered}, got, "all of them are known as steered")
}

func TestOnlyPortsThatWereAddedAreCounted(t *testing.T) {
	w := newWorld(t)
	w.start(t, ":8080")
	w.start(t, ":8081")
	h := w.hold(t)
	w.count(t, h, 8081)
	require.NoError(t, h.Add(netip.MustParseAddrPort("127.0.0.1:8081")))
	o := order{In: 100, Out: 100, Mode: clientFirst}
	w.exchange(t, many, o, w.outside, w.pod.IP4, 8080)
	w.exchange(t, many, o, w.pod.Namespace, netip.MustParseAddr("127.0.0.1"), 8081)
	w.exchange(t, 1, o, w.outside, w.pod.IP4, 8081)
	becomes(t, h, 8081, ways{Direct: each(1, 100, 100)})
	assert.Equal(t, ways{}, traffic(t, h, 8080))
}

func TestConnectionsThatAreCutOffCountAsAborted(t *testing.T) {
	for name, mode := range map[string]ending{"by the client": clientResets, "by the app": appResets} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.start(t, ":8080")
			h := w.hold(t)
			w.count(t, h, port)
			w.exchange(t, many, order{In: 100, Out: 200, Mode: mode}, w.outside, w.pod.IP4, port)
			want := counts{Opened: many, Closed: many, Aborted: many, Received: many * 100, Sent: many * 200}
			if mode == appResets {
				want.Received += many // the byte by which the client says that it has everything
			}
			becomes(t, h, port, ways{Direct: want})
		})
	}
}

func TestOpenConnections(t *testing.T) {
	w := newWorld(t)
	h := w.hold(t)
	w.count(t, h, port)
	w.steered(t, h, w.pod.IP6, port)
	var open []net.Conn
	for range 3 {
		c, err := w.dial(t.Context(), w.outside, w.pod.IP6, port)
		require.NoError(t, err)
		defer c.Close()
		open = append(open, c)
	}
	becomes(t, h, port, ways{Steered: counts{Opened: 3}})
	require.NoError(t, open[0].Close())
	becomes(t, h, port, ways{Steered: counts{Opened: 3, Closed: 1}})
	got, err := h.Traffic(port)
	require.NoError(t, err)
	assert.EqualValues(t, 2, got.Steered.Open())

	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		require.NoError(t, h.Remove(netip.AddrPortFrom(ip, port)))
	}
	w.count(t, h, port)
	require.NoError(t, open[1].Close())
	w.exchange(t, 1, order{In: 20, Out: 20, Mode: clientFirst}, w.outside, w.pod.IP6, port)
	becomes(t, h, port, ways{Steered: each(1, 20, 20)})
	assert.Equal(t, each(1, 20, 20), traffic(t, h, port).Steered,
		"what was opened before is not counted to what comes after")
}

func TestProbesAreNotCounted(t *testing.T) {
	w := newWorld(t)
	h := w.hold(t)
	w.count(t, h, port)
	l := w.listen(t, h, w.pod.IP4, port)
	for range 5 {
		c, err := w.dial(t.Context(), w.pod.Namespace, w.pod.IP4, port)
		require.NoError(t, err)
		accepted, err := l.AcceptTCP()
		require.NoError(t, err)
		require.NoError(t, h.Discount(accepted))
		require.NoError(t, c.Close())
		require.NoError(t, accepted.Close())
	}
	go func() { _ = serve(l) }()
	w.exchange(t, 1, order{In: 20, Out: 30, Mode: appFirst}, w.outside, w.pod.IP4, port)
	becomes(t, h, port, ways{Steered: each(1, 20, 30)})
}

// Pods of a node whose unified hierarchy does not follow its pods share its groups, also with the
// node agent.
func TestPodsOfOneGroupAreCountedApart(t *testing.T) {
	node := testnet.NewNode(t)
	counting := tcpstats.New(node.Proc())
	var pods []*world
	var holds []*tcpstats.Pod
	for range 2 {
		w := newPod(t, node, counting)
		w.start(t, ":8080")
		h := w.hold(t)
		w.count(t, h, port)
		pods, holds = append(pods, w), append(holds, h)
	}
	for i, w := range pods {
		w.exchange(t, many+i, order{In: 100, Out: 200, Mode: clientFirst}, w.outside, w.pod.IP4, port)
	}
	for i, h := range holds {
		becomes(t, h, port, ways{Direct: each(uint64(many+i), 100, 200)})
	}
	require.NoError(t, holds[0].Close())
	require.NoError(t, holds[0].Close(), "closing again changes nothing")
	pods[1].exchange(t, 1, order{In: 100, Out: 200, Mode: clientFirst}, pods[1].outside, pods[1].pod.IP4, port)
	becomes(t, holds[1], port, ways{Direct: each(many+2, 100, 200)})
}

func TestPodWithoutControlGroupHasItsSteeredConnectionsCounted(t *testing.T) {
	w := newWorld(t)
	h, err := w.node.Attach(w.pod.Namespace, w.pod.UID, []string{"4242424242"})
	require.NoError(t, err)
	defer func() { require.NoError(t, h.Close()) }()
	assert.ErrorContains(t, h.Missing(), "read the control groups of process 4242424242")
	w.count(t, h, port)
	w.steered(t, h, w.pod.IP4, port)
	w.exchange(t, many, order{In: 77, Out: 78, Mode: appFirst}, w.outside, w.pod.IP4, port)
	becomes(t, h, port, ways{Steered: each(many, 77, 78)})
}
