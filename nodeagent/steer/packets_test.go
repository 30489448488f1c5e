// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// extension is an IPv6 header that means nothing, of 8 bytes for each of n.
func extension(n int) string {
	e := make([]byte, 8*n)
	e[1] = byte(n - 1)
	e[2], e[3] = 0x1e, byte(8*n-4) // an option for experiments, to be skipped by those who do not know it
	return string(e)
}

func TestHeadersBeforeTheOneOfTCP(t *testing.T) {
	type option struct {
		level, name int
		value       string
	}
	for _, tc := range []struct {
		name    string
		ip6     bool
		options []option
	}{
		// router alert
		{"IPv4 options", false, []option{{unix.IPPROTO_IP, unix.IP_OPTIONS,
			"\x01\x01\x01\x01\x94\x04\x00\x00"}}},
		{"hop-by-hop options", true, []option{{unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, extension(1)}}},
		{"long hop-by-hop options", true, []option{{unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, extension(4)}}},
		{"destination options", true, []option{{unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, extension(2)}}},
		{"both", true, []option{{unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, extension(2)},
			{unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, extension(1)}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			everyDatapath(t, func(t *testing.T, w *world) {
				w.start(t, "agent")
				to := w.pod.IP4
				if tc.ip6 {
					to = w.pod.IP6
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				var c net.Conn
				require.NoError(t, w.node.Do(func() (err error) {
					d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
						_ = raw.Control(func(fd uintptr) {
							for _, o := range tc.options {
								require.NoError(t, unix.SetsockoptString(int(fd), o.level, o.name, o.value))
							}
						})
						return nil
					}}
					d.SetMultipathTCP(false)
					c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
					return err
				}))
				defer c.Close()
				assert.Equal(t, "agent", wordOf(t, c))
			})
		})
	}
}

// tunnel is a device of the pod without link headers, whose other end is in the test's hands.
type tunnel struct {
	*os.File
	pod, peer netip.Addr
}

func newTunnel(t *testing.T, w *world) *tunnel {
	t.Helper()
	tun := &tunnel{pod: netip.MustParseAddr("198.19.99.1"), peer: netip.MustParseAddr("198.19.99.2")}
	require.NoError(t, w.pod.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		require.NoError(t, err)
		request, err := unix.NewIfreq("tun0")
		require.NoError(t, err)
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
		tun.File = os.NewFile(uintptr(fd), "tun0")
		return addressed("tun0", tun.pod.String()+"/24")
	}))
	t.Cleanup(func() { _ = tun.Close() })
	require.NoError(t, tun.SetDeadline(time.Now().Add(30*time.Second)))
	return tun
}

const (
	fin = 0x01
	syn = 0x02
	ack = 0x10
)

// send sends a segment without data from port 4711 of the peer.
func (tun *tunnel) send(t *testing.T, flags byte, seq, acked uint32) {
	t.Helper()
	p := make([]byte, 40)
	p[0], p[3], p[8], p[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(p[12:], tun.peer.AsSlice())
	copy(p[16:], tun.pod.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	binary.BigEndian.PutUint16(p[20:], 4711)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint32(p[24:], seq)
	binary.BigEndian.PutUint32(p[28:], acked)
	p[32], p[33] = 0x50, flags
	binary.BigEndian.PutUint16(p[34:], 65000)
	pseudo := append([]byte{}, p[12:20]...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(p[36:], checksum(append(pseudo, p[20:]...)))
	_, err := tun.Write(p)
	require.NoError(t, err)
}

// receive returns the next segment for that port.
func (tun *tunnel) receive(t *testing.T) (flags byte, seq uint32, text string) {
	t.Helper()
	p := make([]byte, 2000)
	for {
		n, err := tun.Read(p)
		require.NoError(t, err)
		if n >= 40 && p[0] == 0x45 && p[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(p[22:]) == 4711 {
			return p[33], binary.BigEndian.Uint32(p[24:]), string(p[20+int(p[32]>>4)*4 : n])
		}
	}
}

func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestDeviceWithoutLinkHeaders(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		tun := newTunnel(t, w)
		a := w.start(t, "agent")
		require.NoError(t, a.program.Add(netip.AddrPortFrom(tun.pod, port)))
		tun.send(t, syn, 1000, 0)
		flags, theirs, _ := tun.receive(t)
		require.Equal(t, byte(syn|ack), flags)
		tun.send(t, ack, 1001, theirs+1)
		_, _, text := tun.receive(t)
		assert.Equal(t, "agent\n", text)
		tun.send(t, fin|ack, 1001, theirs+1)
	})
}

// A packet that is not TCP, not for a target, or truncated must be ignored.
func TestOddPacketsAreNobodysBusiness(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		tun := newTunnel(t, w)
		a := w.start(t, "agent")
		require.NoError(t, a.program.Add(netip.AddrPortFrom(tun.pod, port)))
		whole := []byte{
			0x45, 0, 0, 40, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0, 198, 19, 99, 2, 198, 19, 99, 1,
			0x12, 0x67, port >> 8, port & 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, syn, 0xff, 0xff, 0, 0, 0, 0,
		}
		for length := 1; length <= len(whole); length++ {
			_, _ = tun.Write(whole[:length]) // the device itself refuses some
		}
		for i := range whole {
			for _, b := range []byte{0, 0x0f, 0x40, 0x46, 0x60, 0xff} {
				odd := append([]byte{}, whole...)
				odd[i] = b
				_, _ = tun.Write(odd)
			}
		}
		six := append([]byte{0x60, 0, 0, 0, 0, 40, 0, 64}, make([]byte, 72)...)
		copy(six[8:], w.pod.IP6.AsSlice())
		copy(six[24:], w.pod.IP6.AsSlice())
		six[23]++
		for _, next := range []byte{0, 6, 43, 44, 50, 51, 59, 60, 135, 255} {
			for at := 40; at < 80; at += 8 {
				odd := append([]byte{}, six...)
				odd[6], odd[at] = next, next
				_, _ = tun.Write(odd)
				odd[at+1] = 255
				_, _ = tun.Write(odd)
			}
		}
		// A packet that cannot be read is not steered, and the next good one still is.
		assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP4))
		assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP6))
		outcomes, err := a.program.Outcomes()
		require.NoError(t, err)
		assert.Zero(t, outcomes[bpf.NotAssigned])
		if w.datapath != steer.SkLookup {
			assert.Less(t, outcomes[bpf.Steered], uint64(300))
		}
	})
}

// A bridge's port sees packets for others, too.
func TestPacketsForOtherMachinesAreNotSteered(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		require.Equal(t, "app", ask(t, w.node.Namespace, w.pod.IP4))
		a := w.start(t, "agent")
		require.NoError(t, w.node.Do(func() error {
			l, err := netlink.LinkByName("pod1")
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, IP: w.pod.IP4.AsSlice(),
				HardwareAddr: net.HardwareAddr{2, 3, 4, 5, 6, 7}, State: netlink.NUD_PERMANENT,
			})
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var d net.Dialer
		d.SetMultipathTCP(false)
		require.Error(t, w.node.Do(func() error {
			c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(w.pod.IP4, port).String())
			if err == nil {
				_ = c.Close()
			}
			return err
		}))
		outcomes, err := a.program.Outcomes()
		require.NoError(t, err)
		assert.Zero(t, outcomes[bpf.Steered])
	})
}
