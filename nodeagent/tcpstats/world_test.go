// SPDX-License-Identifier: Apache-2.0

package tcpstats_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

// Set in the environment, these turn the test's program into another one.
const (
	envApp = "SIDESTEP_TEST_TCPSTATS_APP" // an app that listens so
	// a node agent that counts in this control group, until it is killed
	envAgent = "SIDESTEP_TEST_TCPSTATS_AGENT"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envApp) != "":
		l, err := net.Listen("tcp", os.Getenv(envApp))
		if err == nil {
			err = serve(l)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case os.Getenv(envAgent) != "":
		fmt.Fprintln(os.Stderr, beAgent())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// order is what a client wants of a connection: the first bytes that it sends.
type order struct {
	In, Out uint32 // bytes, those of the order included
	Mode    ending
	_       [3]byte
}

const orderSize = 12

// ending says how a connection ends.
type ending uint8

const (
	clientFirst ending = iota + 1 // when it has its answer, as clients of keep-alive connections do
	appFirst                      // as servers of HTTP/1.0 do
	halfClosed                    // the client's side is closed before the app answers
	clientResets
	appResets
)

var endings = map[string]ending{
	"the client closes first": clientFirst, "the app closes first": appFirst,
	"the client closes its side, then the app": halfClosed,
}

// serve is an app that does what it is told. Its listener is one of MPTCP, as is Go's default.
func serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var o order
			if binary.Read(c, binary.BigEndian, &o) != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, c, int64(o.In-orderSize)); err != nil {
				return
			}
			if o.Mode == halfClosed {
				_, _ = io.Copy(io.Discard, c)
			}
			_, _ = c.Write(make([]byte, o.Out))
			switch o.Mode {
			case appResets:
				_, _ = c.Read(make([]byte, 1)) // the client has everything
				_ = c.(*net.TCPConn).SetLinger(0)
			case appFirst, halfClosed:
			default:
				_, _ = io.Copy(io.Discard, c)
			}
		}()
	}
}

// exchange is a client of the app.
func (o order) exchange(c net.Conn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := binary.Write(c, binary.BigEndian, o); err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, o.In-orderSize)); err != nil {
		return err
	}
	if o.Mode == halfClosed {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(io.Discard, c, int64(o.Out)); err != nil {
		return err
	}
	switch o.Mode {
	case clientResets:
		return c.(*net.TCPConn).SetLinger(0)
	case appResets:
		_, _ = c.Write([]byte{1})
		_, _ = c.Read(make([]byte, 1))
		return nil
	case clientFirst:
		return nil
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("got %d bytes more, %w", n, err)
	}
	return nil
}

// world is a pod with control groups of its own, and a node agent that counts.
type world struct {
	outside *netns.Namespace // where clients are
	pod     *testnet.Pod
	proc    string
	node    *tcpstats.Node
	finder  *podnet.Finder
	cgroup  string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	node := testnet.NewNode(t)
	w := newPod(t, node, tcpstats.New(node.Proc()))
	w.cgroup = w.pod.Cgroup(t)
	return w
}

// newPod makes a pod whose processes are in this test's control group.
func newPod(t testing.TB, node *testnet.Node, counting *tcpstats.Node) *world {
	t.Helper()
	require.NoError(t, rlimit.RemoveMemlock())
	return &world{proc: node.Proc(), outside: node.Namespace, pod: node.NewPod(t), node: counting,
		finder: podnet.NewFinder(node.Proc())}
}

// start starts the app in the pod.
func (w *world) start(t testing.TB, listen string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envApp+"="+listen)
	cmd.Stderr = t.Output()
	w.pod.Start(t, w.cgroup, cmd)
	_, port, err := net.SplitHostPort(listen)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		c, err := testnet.Dial(t.Context(), w.pod.Namespace, netip.MustParseAddrPort("127.0.0.1:"+port))
		if err != nil {
			c, err = testnet.Dial(t.Context(), w.pod.Namespace, netip.MustParseAddrPort("[::1]:"+port))
		}
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	}, 20*time.Second, 10*time.Millisecond, "the app does not listen on %s", listen)
}

// hold attaches the program, until the test's end.
func (w *world) hold(t testing.TB) *tcpstats.Pod {
	t.Helper()
	h, err := w.node.Attach(w.pod.Namespace, w.pod.UID, w.processes(t))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, h.Close()) })
	require.NoError(t, h.Missing())
	return h
}

// processes is the numbers of the pod's processes.
func (w *world) processes(t testing.TB) []string {
	t.Helper()
	found, err := w.finder.Find(w.pod.UID, []netip.Addr{w.pod.IP4})
	require.NoError(t, err)
	require.NoError(t, found.Close())
	return w.finder.Processes(w.pod.UID, w.pod.ID())
}

// count counts a port of the pod.
func (w *world) count(t testing.TB, h *tcpstats.Pod, port uint16) {
	t.Helper()
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		require.NoError(t, h.Add(netip.AddrPortFrom(ip, port)))
	}
}

// steered is a listener of the node agent, which has the connections that would be steered to it.
func (w *world) steered(t testing.TB, h *tcpstats.Pod, ip netip.Addr, port uint16) {
	t.Helper()
	l := w.listen(t, h, ip, port)
	go func() { _ = serve(l) }()
}

// listen opens a listener of the node agent.
func (w *world) listen(t testing.TB, h *tcpstats.Pod, ip netip.Addr, port uint16) *net.TCPListener {
	t.Helper()
	l := w.plain(t, ip, port)
	require.NoError(t, h.Mark(l))
	return l
}

// plain opens a listener of plain TCP, as package podnet does.
func (w *world) plain(t testing.TB, ip netip.Addr, port uint16) *net.TCPListener {
	t.Helper()
	var l net.Listener
	require.NoError(t, w.pod.Do(func() (err error) {
		var plain net.ListenConfig
		plain.SetMultipathTCP(false)
		l, err = plain.Listen(t.Context(), "tcp", netip.AddrPortFrom(ip, port).String())
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// dial connects to a port of the pod.
func (w *world) dial(ctx context.Context, from *netns.Namespace, ip netip.Addr, port uint16) (net.Conn, error) {
	return testnet.Dial(ctx, from, netip.AddrPortFrom(ip, port))
}

// exchange makes many connections, several at a time.
func (w *world) exchange(t testing.TB, n int, o order, from *netns.Namespace, ip netip.Addr, port uint16) {
	t.Helper()
	var running sync.WaitGroup
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range 4 {
		running.Go(func() {
			for range todo {
				c, err := w.dial(t.Context(), from, ip, port)
				if err == nil {
					err = o.exchange(c)
				}
				if !assert.NoError(t, err) {
					return
				}
			}
		})
	}
	running.Wait()
}

// counts is the exact part of what is counted.
type counts struct{ Opened, Closed, Aborted, Received, Sent uint64 }

func of(t tcpstats.Traffic) counts { return counts{t.Opened, t.Closed, t.Aborted, t.Received, t.Sent} }

type ways struct{ Steered, Direct, Local counts }

func traffic(t testing.TB, h *tcpstats.Pod, port uint16) ways {
	t.Helper()
	p, err := h.Traffic(port)
	require.NoError(t, err)
	return ways{of(p.Steered), of(p.Direct), of(p.Local)}
}

// becomes waits until the counters are so: a connection ends a moment after the client has seen its
// end.
func becomes(t testing.TB, h *tcpstats.Pod, port uint16, want ways) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if traffic(t, h, port) == want {
			return
		}
	}
	require.Equal(t, want, traffic(t, h, port))
}
