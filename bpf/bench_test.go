// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/podnet"
)

const (
	port   = 8080
	repeat = 200_000 // in far less than a second, for which a heartbeat counts
)

// world is a pod with one open connection, and a listener of an agent.
type world struct {
	pod            *testnet.Pod
	client, server netip.AddrPort
	steer          *bpf.Steer
	heartbeat      *ebpf.Map
}

func newWorld(b *testing.B, load func(*ebpf.Map) (*bpf.Steer, error)) *world {
	b.Helper()
	node := testnet.NewNode(b)
	w := &world{pod: node.NewPod(b)}
	testnet.Listen(b, w.pod.Namespace, ":8080")
	c, err := testnet.Dial(b.Context(), node.Namespace, netip.AddrPortFrom(w.pod.IP4, port))
	require.NoError(b, err)
	b.Cleanup(func() { _ = c.Close() })
	w.client, w.server = c.LocalAddr().(*net.TCPAddr).AddrPort(), netip.AddrPortFrom(w.pod.IP4, port)
	heartbeat, err := bpf.NewHeartbeat()
	require.NoError(b, err)
	b.Cleanup(func() { _ = heartbeat.Close() })
	w.heartbeat = heartbeat
	w.steer, err = load(heartbeat)
	require.NoError(b, err)
	b.Cleanup(func() { _ = w.steer.Close() })
	key, value := bpf.Target(w.server)
	require.NoError(b, w.steer.Targets.Put(key, value))
	l, err := (&podnet.Namespace{Namespace: w.pod.Namespace}).Listen(netip.MustParseAddr("127.0.0.1"))
	require.NoError(b, err)
	b.Cleanup(func() { _ = l.Close() })
	raw, err := l.SyscallConn()
	require.NoError(b, err)
	var put error
	require.NoError(b, raw.Control(func(fd uintptr) {
		put = w.steer.Listeners.Put(uint32(bpf.Listener4),
			uint64(fd))
	}))
	require.NoError(b, put)
	return w
}

// measure runs the program in the pod's namespace and reports what one run took.
func (w *world) measure(b *testing.B, o ebpf.RunOptions) {
	b.Helper()
	o.Repeat = repeat
	for b.Loop() {
		var now unix.Timespec
		require.NoError(b, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
		require.NoError(b, w.heartbeat.Put(uint32(0), uint64(now.Nano())))
		require.NoError(b, w.pod.Do(func() error {
			_, err := w.steer.Run(&o)
			return err
		}))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/repeat, "ns/run")
}

// packet is an Ethernet frame with a TCP segment.
func packet(from, to netip.AddrPort, flags byte) []byte {
	p := make([]byte, 14+20+20)
	p[12] = 8
	ip, tcp := p[14:], p[34:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12], tcp[13] = 0x50, flags
	return p
}

// BenchmarkPacket is what TC costs each packet that arrives.
func BenchmarkPacket(b *testing.B) {
	const syn, ack = 0x02, 0x10
	for _, bc := range []struct {
		name  string
		build func(w *world) []byte
	}{
		{"of a connection to an intercepted port",
			func(w *world) []byte { return packet(w.client, w.server, ack) }},
		{"of a connection to another port", func(w *world) []byte {
			return packet(w.client, netip.AddrPortFrom(w.server.Addr(), 9999), ack)
		}},
		{"from the pod to itself", func(w *world) []byte {
			return packet(netip.AddrPortFrom(w.server.Addr(), 4711), w.server, ack)
		}},
		{"SYN, but for the assignment itself", func(w *world) []byte {
			return packet(netip.AddrPortFrom(w.client.Addr(), 1), w.server, syn)
		}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			w := newWorld(b, bpf.LoadSteerTC)
			w.measure(b, ebpf.RunOptions{Data: bc.build(w)})
		})
	}
}

// lookup is struct bpf_sk_lookup.
type lookup struct {
	Cookie           uint64
	Family, Protocol uint32
	Remote4          [4]byte
	Remote6          [16]byte
	RemotePort, _    uint16
	Local4           [4]byte
	Local6           [16]byte
	LocalPort        uint32
	Device           uint32
	_                uint32
}

// BenchmarkLookup is what sk_lookup costs each SYN.
func BenchmarkLookup(b *testing.B) {
	for name, at := range map[string]uint16{"of an intercepted port": port, "of another port": 9999} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, bpf.LoadSteer)
			w.measure(b, ebpf.RunOptions{Context: lookup{
				Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Remote4: w.client.Addr().As4(), RemotePort: 1,
				Local4: w.server.Addr().As4(), LocalPort: uint32(at),
			}})
		})
	}
}
