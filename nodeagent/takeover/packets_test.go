// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// clients dials and asks on as many connections.
func (w *world) clients(t *testing.T, ip netip.Addr, n int) (all []*client) {
	t.Helper()
	for range n {
		c := dial(t, w.node.Namespace, ip)
		who, err := c.ask(plain)
		require.NoError(t, err)
		require.Equal(t, "app", who)
		all = append(all, c)
	}
	return all
}

// falseAlarm is a rule of which plain requests with x-user: ann-x have all that is looked for, and
// which they do not match.
func falseAlarm(t testing.TB) takeover.Rule {
	r := rule(t, takeover.Auto)
	r.HTTP = regexRule(t, "x-user", "ann(-[0-9]+)?")
	return r
}

func get(headers ...string) string {
	return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Join(append(headers, "", ""), "\r\n")
}

func TestHeadMayBeCutAnywhere(t *testing.T) {
	w := newWorld(t)
	request := get("x-user: ann")
	all := w.clients(t, w.pod.IP4, len(request)-1)
	slow := w.clients(t, w.pod.IP6, 3)
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	for i, c := range all {
		_, err := c.askIn(time.Millisecond, request[:i+1], request[i+1:])
		assert.ErrorIs(t, err, unix.ECONNRESET, "cut after %d bytes", i+1)
	}
	for name, request := range map[string]string{
		"byte by byte":            request,
		"more bytes than packets": get("x-pad: "+strings.Repeat("p", 300), "x-user: ann"),
	} {
		_, err := slow[0].askIn(time.Millisecond, strings.Split(request, "")...)
		assert.ErrorIs(t, err, unix.ECONNRESET, name)
		slow = slow[1:]
	}
	w.tookOver(t, len(request)-1+2)
	assert.Zero(t, w.app.marked.Load())
	who, err := slow[0].askIn(time.Millisecond, strings.Split(get("x-user: anne"), "")...)
	require.NoError(t, err)
	assert.Equal(t, "app", who)
}

// A veth hands 64 KiB over as one packet, as GRO does with what a network card has received.
func TestPacketsOf64KiB(t *testing.T) {
	pad := "x-pad: " + strings.Repeat("p", 60<<10)
	body := strings.Repeat("0123456789abcdef", 20<<10)
	post := func(headers ...string) string {
		return "POST / HTTP/1.1\r\nHost: a\r\n" +
			strings.Join(append(headers, fmt.Sprintf("Content-Length: %d", len(body)), "", ""), "\r\n") + body
	}
	w := newWorld(t)
	c4, c6 := w.clients(t, w.pod.IP4, 4), w.clients(t, w.pod.IP6, 4)
	for _, c := range append(c4, c6...) {
		_, err := c.ask(post()) // TCP begins with smaller ones
		require.NoError(t, err)
	}
	longest := w.longest(t)
	w.watch(t, nil, falseAlarm(t))
	w.steer(t)
	for _, all := range [][]*client{c4, c6} {
		for i, request := range []string{get(pad, "x-user: ann"), post("x-user: ann"),
			post(pad, "x-user: ann")} {
			_, err := all[i].ask(request)
			assert.ErrorIs(t, err, unix.ECONNRESET)
		}
		for _, request := range []string{
			get(pad, "x-user: ann-x"), post("x-user: ann-x"), post(pad, "x-user: ann-x"), post(pad),
			get(pad), get("x-user: ann-x", pad, "x-a: "+pad),
		} {
			before := w.counters.Released.Load()
			start := time.Now()
			who, err := all[3].ask(request)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
			t.Logf("%d bytes, %d packets held, answered after %v", len(request),
				w.counters.Released.Load()-before, time.Since(start))
			if strings.HasPrefix(request, "POST") {
				assert.Equal(t, sha256.Sum256([]byte(body)), w.app.body.Load(), "the app got what was sent")
			}
		}
	}
	largest := longest()
	t.Log("the largest packet had", largest, "bytes")
	if !testing.Short() { // TCP makes them smaller on slow machines
		assert.Greater(t, largest, 60<<10, "the pod got large packets")
	}
	w.tookOver(t, 6)
	assert.Zero(t, w.app.marked.Load())
	assert.Positive(t, w.counters.Released.Load())
}

// longest gives the length of the longest packet that the pod has received since.
func (w *world) longest(t *testing.T) func() int {
	t.Helper()
	fd := -1
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network byte order
	require.NoError(t, w.pod.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	longest := 0
	read := func() int {
		for {
			n, from, err := unix.Recvfrom(fd, nil, unix.MSG_TRUNC)
			if err != nil {
				return longest
			}
			if from, ok := from.(*unix.SockaddrLinklayer); ok && from.Pkttype == unix.PACKET_HOST {
				longest = max(longest, n)
			}
		}
	}
	return read
}

// lose attaches a program to the node's side of the pod that loses one packet in 32, both ways.
// What TCP does then repeats packets, changes their order, and joins them.
func (w *world) lose(t *testing.T) {
	testnet.RequireLinux(t, bpf.NeedsTCX) // to attach it in this simple way
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.FnGetPrandomU32.Call(),
			asm.And.Imm(asm.R0, 31),
			asm.JEq.Imm(asm.R0, 0, "lose"),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
			asm.Return(),
			asm.Mov.Imm(asm.R0, 2).WithSymbol("lose"), // TCX_DROP
			asm.Return(),
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = program.Close() })
	require.NoError(t, w.node.Do(func() error {
		l, err := netlink.LinkByName("pod1")
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			l, err := link.AttachTCX(link.TCXOptions{Interface: l.Attrs().Index, Program: program, Attach: at})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		return nil
	}))
}

func TestLostRepeatedAndOvertakingPackets(t *testing.T) {
	w := newWorld(t)
	all := append(w.clients(t, w.pod.IP4, 8), w.clients(t, w.pod.IP6, 8)...)
	w.watch(t, nil, falseAlarm(t))
	w.steer(t)
	w.lose(t)
	pad := "x-pad: " + strings.Repeat("p", 10<<10)
	done := make(chan error)
	for i, c := range all {
		go func() {
			done <- func() error {
				requests := []string{get(pad), get(pad, "x-user: ann-x"), get("x-user: ann-y", pad),
					get(pad, "x-user: anne")}
				for n := range 12 {
					request := requests[(i+n)%len(requests)]
					cut := len(request) * (n + 1) / 13
					if who, err := c.askIn(time.Millisecond, request[:cut],
						request[cut:]); err != nil || who != "app" {
						return fmt.Errorf("request %d of client %d: %s, %w", n, i, who, err)
					}
				}
				if i%4 > 0 {
					return nil
				}
				if who, err := c.ask(get(pad, "x-user: ann")); !errors.Is(err, unix.ECONNRESET) {
					return fmt.Errorf("the matching request of client %d was answered by %s, %w", i, who, err)
				}
				return nil
			}()
		}()
	}
	for range all {
		assert.NoError(t, <-done)
	}
	t.Logf("taken over %d, let go %d, late %d", w.counters.TakenOver.Load(), w.counters.Released.Load(),
		w.counters.TimedOut.Load())
	w.tookOver(t, 4)
	assert.Zero(t, w.app.marked.Load())
}

// A client that asks whether the app has room again, or is still there, sends packets without a
// request.
func TestProbesOfTCPAreNoRequests(t *testing.T) {
	w := newWorld(t)
	quiet, full := dial(t, w.node.Namespace, w.pod.IP4), dial(t, w.node.Namespace, w.pod.IP6)
	for _, c := range []*client{quiet, full} {
		require.NoError(t, c.Conn.(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{Enable: true,
			Idle: time.Second, Interval: time.Second, Count: 5}))
		_, err := c.ask(plain)
		require.NoError(t, err)
	}
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	const size = 16 << 20 // more than the app's kernel has room for
	sent := full.askLater(fmt.Sprintf("POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n",
		size) + strings.Repeat("b", size))
	<-w.app.begun
	time.Sleep(3 * time.Second) // of probes, which is how often TCP sends them
	w.app.let <- struct{}{}
	got := <-sent
	require.NoError(t, got.err)
	assert.Equal(t, "app", got.who)
	for range 3 {
		for _, c := range []*client{quiet, full} {
			who, err := c.ask(plain)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
		}
	}
	for _, c := range []*client{quiet, full} {
		_, err := c.ask(marked)
		assert.ErrorIs(t, err, unix.ECONNRESET)
	}
	assert.Zero(t, w.app.marked.Load())
}

// options makes the connection send IPv6 extension headers.
func options(t *testing.T, c *client, headers ...int) {
	t.Helper()
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	pad := string([]byte{0, 0, 1, 4, 0, 0, 0, 0})
	for _, header := range headers {
		var problem error
		require.NoError(t, raw.Control(func(fd uintptr) {
			problem = unix.SetsockoptString(int(fd),
				unix.IPPROTO_IPV6, header, pad)
		}))
		require.NoError(t, problem)
	}
}

func TestIPv6WithExtensionHeaders(t *testing.T) {
	w := newWorld(t)
	all := w.clients(t, w.pod.IP6, 3)
	options(t, all[0], unix.IPV6_HOPOPTS)
	options(t, all[1], unix.IPV6_DSTOPTS)
	options(t, all[2], unix.IPV6_HOPOPTS, unix.IPV6_DSTOPTS)
	w.watch(t, nil, falseAlarm(t))
	w.steer(t)
	for i, c := range all {
		for range 3 {
			before := w.counters.Released.Load()
			start := time.Now()
			who, err := c.ask(get("x-user: ann-x"))
			require.NoError(t, err)
			assert.Equal(t, "app", who)
			assert.Equal(t, before+1, w.counters.Released.Load(), "it was looked at")
			t.Log("answered after", time.Since(start))
		}
		_, err := c.ask(get("x-user: ann"))
		assert.ErrorIs(t, err, unix.ECONNRESET, "client %d", i)
	}
	assert.Zero(t, w.app.marked.Load())
}

// askIn is ask with a pause of one's own between the parts.
func (c *client) askIn(pause time.Duration, parts ...string) (string, error) {
	_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	for _, part := range parts[:len(parts)-1] {
		if _, err := io.WriteString(c, part); err != nil {
			return "", err
		}
		time.Sleep(pause)
	}
	return c.ask(parts[len(parts)-1])
}
