// SPDX-License-Identifier: Apache-2.0

package peername_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/peername"
	"sidestep.dev/sidestep/nodeagent/podnet"
)

// world is a pod with control groups of its own, and a node agent that passes connections on.
type world struct {
	client *testnet.Node // where clients outside are
	pod    *testnet.Pod
	ns     *podnet.Namespace
	node   *peername.Node
	finder *podnet.Finder
	cgroup string
}

// newWorld makes a pod that is a node's only one.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := newPod(t, testnet.NewNode(t), nil)
	w.cgroup = w.pod.Cgroup(t)
	return w
}

// newPod makes a pod whose processes are in this test's control group. names is that of the node's
// other pods.
func newPod(t testing.TB, node *testnet.Node, names *peername.Node) *world {
	t.Helper()
	require.NoError(t, rlimit.RemoveMemlock())
	if names == nil {
		names = peername.New(node.Proc(), false)
	}
	w := &world{client: node, pod: node.NewPod(t), node: names, finder: podnet.NewFinder(node.Proc())}
	w.ns = &podnet.Namespace{Namespace: w.pod.Namespace}
	return w
}

// start starts the app and waits until it listens.
func (w *world) start(t *testing.T, a app, listen string) {
	t.Helper()
	cmd := a.command(t, listen)
	cmd.Stderr = t.Output()
	w.pod.Start(t, w.cgroup, cmd)
	w.await(t, a, listen)
}

func (w *world) await(t *testing.T, a app, listen string) {
	t.Helper()
	ip := w.pod.IP4
	if listen == only6 {
		ip = w.pod.IP6
	}
	require.Eventually(t, func() bool {
		_, err := w.ask(t, a, ip, nil)
		return err == nil
	}, 30*time.Second, 10*time.Millisecond, "%s does not listen", a.name)
}

// hold attaches the programs to the pod, until the test's end.
func (w *world) hold(t testing.TB) *peername.Pod {
	t.Helper()
	id := w.pod.ID()
	found, err := w.finder.Find(w.pod.UID, []netip.Addr{w.pod.IP4})
	require.NoError(t, err)
	require.NoError(t, found.Close())
	h, err := w.node.Attach(w.pod.UID, w.finder.Processes(w.pod.UID, id))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, h.Close()) })
	return h
}

// ask connects to the app as the node agent does, and gives the ways in which the app sees its
// client.
func (w *world) ask(t testing.TB, a app, ip netip.Addr, introduce func(fd int) error) ([]netip.AddrPort,
	error) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return a.ask(ctx, func(ctx context.Context) (net.Conn, error) {
		return w.dial(ctx, ip, introduce)
	})
}

func (w *world) dial(ctx context.Context, ip netip.Addr, introduce func(fd int) error) (net.Conn, error) {
	socket, err := w.ns.DialAs(ctx, ip, netip.AddrPortFrom(ip, 8080), introduce)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	return net.FileConn(socket)
}

func introduce(t testing.TB, h *peername.Pod, client netip.AddrPort) func(fd int) error {
	return func(fd int) error {
		err := h.SetPeer(fd, client)
		assert.NoError(t, err)
		return err
	}
}

// testApp runs an app on each kind of listener and sees that it is told its clients, by each of the
// ways in which it asks.
func testApp(t *testing.T, a app) {
	a.need(t)
	client4, client6 := netip.MustParseAddrPort("203.0.113.7:4711"),
		netip.MustParseAddrPort("[2001:db8::7]:65535")
	for _, listen := range []string{only4, only6, both} {
		t.Run(listen, func(t *testing.T) {
			w := newWorld(t)
			w.start(t, a, listen)
			h := w.hold(t)
			for _, c := range []struct {
				client netip.AddrPort
				ip     netip.Addr
				not    string
			}{{client4, w.pod.IP4, only6}, {client6, w.pod.IP6, only4}} {
				if listen == c.not {
					continue
				}
				for range 20 {
					got, err := w.ask(t, a, c.ip, introduce(t, h, c.client))
					require.NoError(t, err)
					for _, seen := range got {
						require.Equal(t, c.client, seen)
					}
				}
				got, err := w.ask(t, a, c.ip, nil)
				require.NoError(t, err)
				assert.Equal(t, c.ip, got[0].Addr(), "a connection that nobody was introduced on")
			}
		})
	}
}

func TestGoAppSeesItsClients(t *testing.T) { testApp(t, goApp) }

func TestAppsInOtherLanguagesSeeTheirClients(t *testing.T) {
	for _, a := range otherApps {
		t.Run(a.name, func(t *testing.T) { testApp(t, a) })
	}
}

func TestOnlyIntroducedConnectionsAreChanged(t *testing.T) {
	w := newWorld(t)
	w.start(t, goApp, both)
	h := w.hold(t)
	node := netip.MustParseAddr("198.18.1.1")
	for _, tc := range []struct {
		name string
		dial func(ctx context.Context) (net.Conn, error)
		want netip.Addr
	}{
		{"a client outside", func(ctx context.Context) (net.Conn, error) {
			return testnet.Dial(ctx, w.client.Namespace, netip.AddrPortFrom(w.pod.IP4, 8080))
		}, node},
		{"the pod itself", func(ctx context.Context) (net.Conn, error) {
			return testnet.Dial(ctx, w.pod.Namespace, netip.AddrPortFrom(w.pod.IP4, 8080))
		}, w.pod.IP4},
		{"the pod itself, by IPv6", func(ctx context.Context) (net.Conn, error) {
			return testnet.Dial(ctx, w.pod.Namespace, netip.AddrPortFrom(w.pod.IP6, 8080))
		}, w.pod.IP6},
		{"loopback", func(ctx context.Context) (net.Conn, error) {
			return testnet.Dial(ctx, w.pod.Namespace, netip.MustParseAddrPort("127.0.0.1:8080"))
		}, netip.MustParseAddr("127.0.0.1")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := goApp.ask(t.Context(), tc.dial)
			require.NoError(t, err)
			for _, seen := range got {
				assert.Equal(t, tc.want, seen.Addr())
			}
		})
	}
	require.NoError(t, h.Close())
	got, err := w.ask(t, goApp, w.pod.IP4, nil)
	require.NoError(t, err)
	assert.Equal(t, w.pod.IP4, got[0].Addr(), "after Close")
}

// Two nodes may share a kernel, and so a control group, and have pods of the same address.
func TestPodsThatShareEverythingButTheirNamespacesAreNotMixedUp(t *testing.T) {
	type pod struct {
		*world
		hold   *peername.Pod
		client netip.AddrPort
	}
	var pods []pod
	for i := range 2 {
		w := newPod(t, testnet.NewNode(t), nil)
		w.start(t, goApp, both)
		pods = append(pods, pod{w, w.hold(t),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 1000)})
	}
	require.Equal(t, pods[0].pod.IP4, pods[1].pod.IP4)
	var asking sync.WaitGroup
	for _, p := range pods {
		for range 4 {
			asking.Go(func() {
				for range 50 {
					got, err := p.ask(t, goApp, p.pod.IP4, introduce(t, p.hold, p.client))
					if !assert.NoError(t, err) || !assert.Equal(t, []netip.AddrPort{p.client, p.client}, got) {
						return
					}
				}
			})
		}
	}
	asking.Wait()
	require.NoError(t, pods[0].hold.Close())
	got, err := pods[1].ask(t, goApp, pods[1].pod.IP4, introduce(t, pods[1].hold, pods[1].client))
	require.NoError(t, err)
	assert.Equal(t, pods[1].client, got[0], "the other pod is still told")
}

func TestPodsOfOneGroupShareItsPrograms(t *testing.T) {
	node := testnet.NewNode(t)
	names := peername.New(node.Proc(), false)
	holds := []*peername.Pod{newPod(t, node, names).hold(t), newPod(t, node, names).hold(t)}
	root := testnet.OwnCgroup(t)
	before := attached(t, root)
	require.NoError(t, holds[0].Close())
	assert.Equal(t, before, attached(t, root))
	require.NoError(t, holds[0].Close(), "closing again changes nothing")
	require.NoError(t, holds[1].Close())
	assert.Equal(t, before-1, attached(t, root))
}

// attached counts the programs of one kind at a control group.
func attached(t *testing.T, cgroup string) int {
	t.Helper()
	dir, err := os.Open(cgroup)
	require.NoError(t, err)
	defer dir.Close()
	got, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()),
		Attach: ebpf.AttachCgroupInet4GetPeername})
	require.NoError(t, err)
	return len(got.Programs)
}

// During an upgrade two agents serve a pod, each its own connections.
func TestAgentsDoNotDisturbEachOther(t *testing.T) {
	w := newWorld(t)
	w.start(t, goApp, both)
	older, younger := w.hold(t),
		(&world{pod: w.pod, node: peername.New(w.client.Proc(), false), finder: w.finder}).hold(t)
	a, b := netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:2")
	for range 10 {
		got, err := w.ask(t, goApp, w.pod.IP4, introduce(t, older, a))
		require.NoError(t, err)
		assert.Equal(t, []netip.AddrPort{a, a}, got)
		got, err = w.ask(t, goApp, w.pod.IP4, introduce(t, younger, b))
		require.NoError(t, err)
		assert.Equal(t, []netip.AddrPort{b, b}, got)
	}
	require.NoError(t, older.Close())
	got, err := w.ask(t, goApp, w.pod.IP4, introduce(t, younger, b))
	require.NoError(t, err)
	assert.Equal(t, []netip.AddrPort{b, b}, got)
}

func TestMoreConnectionsThanPorts(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.pod.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40099"), 0)
	}))
	w.start(t, goApp, both)
	h := w.hold(t)
	var asking sync.WaitGroup
	for i := range 4 {
		asking.Go(func() {
			for j := range 150 {
				client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i), byte(j)}), uint16(1+j))
				got, err := w.ask(t, goApp, w.pod.IP4, introduce(t, h, client))
				if !assert.NoError(t, err) || !assert.Equal(t, []netip.AddrPort{client, client}, got) {
					return
				}
			}
		})
	}
	asking.Wait()
}

func TestPodWithoutControlGroup(t *testing.T) {
	w := newWorld(t)
	_, err := w.node.Attach(w.pod.UID, nil)
	assert.ErrorContains(t, err, "the pod has no process")
	_, err = w.node.Attach(w.pod.UID, []string{"4242424242"})
	assert.ErrorContains(t, err, "read the control groups of process 4242424242")
	h := w.hold(t)
	assert.ErrorContains(t, h.SetPeer(1<<20, netip.MustParseAddrPort("203.0.113.1:1")), "bad file descriptor")
}

// A connection must not be shown with another address than its client's where that is required.
func TestAConnectionWhoseClientCannotBeNotedIsNotMade(t *testing.T) {
	for _, required := range []bool{true, false} {
		t.Run(fmt.Sprint("required: ", required), func(t *testing.T) {
			w := newPod(t, testnet.NewNode(t), nil)
			w.start(t, goApp, only4)
			node := peername.New(w.client.Proc(), required)
			id := w.ns.ID()
			_, err := w.finder.Find(w.pod.UID, []netip.Addr{w.pod.IP4})
			require.NoError(t, err)
			opened, err := node.Open(&part.Pod{UID: w.pod.UID, Name: "shop/orders", Log: slog.Default(),
				Processes: func() []string { return w.finder.Processes(w.pod.UID, id) }})
			require.NoError(t, err)
			prepare, decided := opened.(part.Dialer).Dialing(netip.MustParseAddrPort("203.0.113.1:1"))
			require.True(t, decided)
			got, err := w.ask(t, goApp, w.pod.IP4, prepare)
			require.NoError(t, err)
			assert.Equal(t, "203.0.113.1:1", got[0].String())

			require.NoError(t, opened.Close()) // now nothing can be noted
			got, err = w.ask(t, goApp, w.pod.IP4, prepare)
			if required {
				assert.ErrorContains(t, err, "set client 203.0.113.1:1")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, w.pod.IP4, got[0].Addr())
		})
	}
}

// BenchmarkAccept is what the app pays: a connection is accepted with its peer's address, which is
// then asked for again and again.
func BenchmarkAccept(b *testing.B) {
	for _, state := range []string{"nothing is attached", "attached, not introduced",
		"attached, introduced", "attached, a client outside"} {
		b.Run(state, func(b *testing.B) {
			w := newPod(b, testnet.NewNode(b), nil)
			l := testnet.Listen(b, w.pod.Namespace, netip.AddrPortFrom(w.pod.IP4, 8080).String())
			var tell func(int) error
			if state != "nothing is attached" {
				h := w.hold(b)
				if state == "attached, introduced" {
					tell = introduce(b, h, netip.MustParseAddrPort("203.0.113.1:1"))
				}
			}
			var c net.Conn
			var err error
			if state == "attached, a client outside" {
				c, err = testnet.Dial(b.Context(), w.client.Namespace, netip.AddrPortFrom(w.pod.IP4, 8080))
			} else {
				c, err = w.dial(b.Context(), w.pod.IP4, tell)
			}
			require.NoError(b, err)
			defer c.Close()
			accepted, err := l.AcceptTCP()
			require.NoError(b, err)
			defer accepted.Close()
			raw, err := accepted.SyscallConn()
			require.NoError(b, err)
			require.NoError(b, raw.Control(func(fd uintptr) {
				for b.Loop() {
					_, _ = unix.Getpeername(int(fd))
				}
			}))
		})
	}
}

// BenchmarkIntroduce is what the node agent pays for each connection.
func BenchmarkIntroduce(b *testing.B) {
	w := newWorld(b)
	h := w.hold(b)
	for b.Loop() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		require.NoError(b, err)
		require.NoError(b, h.SetPeer(fd, netip.MustParseAddrPort("203.0.113.1:1")))
		_ = unix.Close(fd)
	}
}
