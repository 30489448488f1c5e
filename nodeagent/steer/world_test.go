// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

const port = 8080

// world is a pod with an app, its node, and bpffs.
type world struct {
	node     *testnet.Node
	pod      *testnet.Pod
	app      *net.TCPListener
	bpffs    string
	datapath steer.Datapath
	agents   []*agent // that have a heartbeat
}

func newWorld(t *testing.T, datapath steer.Datapath) *world {
	node := testnet.NewNode(t)
	w := &world{node: node, pod: node.NewPod(t), bpffs: testnet.BPFFS(t), datapath: datapath}
	w.app = testnet.Listen(t, w.pod.Namespace, ":8080")
	greet(w.app, "app")
	return w
}

// everyDatapath runs a test in one world for each datapath. All that the kernel should support must
// work.
func everyDatapath(t *testing.T, test func(t *testing.T, w *world)) {
	for _, d := range testnet.Datapaths(t) {
		t.Run(d, func(t *testing.T) { test(t, newWorld(t, steer.Datapath(d))) })
	}
}

func (w *world) newNode() *steer.Node {
	return steer.NewNode(w.bpffs, "node.example", slog.New(slog.DiscardHandler),
		steer.WithDatapath(w.datapath), steer.WithProc(w.node.Proc()))
}

// greet answers each connection with a word.
func greet(l net.Listener, word string) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write([]byte(word + "\n"))
			}()
		}
	}()
}

// ask returns the greeting that a client in the namespace receives.
func ask(t *testing.T, from *netns.Namespace, to netip.Addr) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := testnet.Dial(ctx, from, netip.AddrPortFrom(to, port))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	word, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(word)
}

// ask is ask from the node. On a machine that is so slow that an agent's heartbeat was late
// meanwhile, it asks again.
func (w *world) ask(t *testing.T, to netip.Addr) (word string) {
	t.Helper()
	for range 20 {
		before := w.late()
		if word = ask(t, w.node.Namespace, to); w.late() == before {
			break
		}
	}
	return word
}

// late counts late heartbeats, also those that are late now.
func (w *world) late() (n int64) {
	for _, a := range w.agents {
		n += a.late.Load()
		if last := a.lastBeat.Load(); last != 0 && time.Now().UnixNano()-last > int64(tooLate) {
			n++
		}
	}
	return n
}

// agent is one node agent's steering of the pod.
type agent struct {
	node       *steer.Node
	program    *steer.Program
	listeners  []*net.TCPListener
	fallSilent func() // ends the heartbeat
	// how often the heartbeat has come so late that the agent may have been taken for dead
	late     atomic.Int64
	lastBeat atomic.Int64 // nanoseconds
}

// start steers the pod to listeners that greet with word.
func (w *world) start(t *testing.T, word string) *agent {
	t.Helper()
	a := &agent{node: w.newNode()}
	t.Cleanup(func() { _ = a.node.Close() })
	var err error
	a.program, err = a.node.Load()
	require.NoError(t, err)
	t.Cleanup(func() { _ = a.program.Close() })
	ns := podnet.Namespace{Namespace: w.pod.Namespace}
	for _, home := range []string{"127.0.0.1", "::1"} {
		l, err := ns.Listen(netip.MustParseAddr(home))
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		greet(l, word)
		require.NoError(t, a.program.SetListener(l))
		a.listeners = append(a.listeners, l)
	}
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		require.NoError(t, a.program.Add(netip.AddrPortFrom(ip, port)))
	}
	require.NoError(t, a.program.Attach(w.pod))
	a.heartbeat(t)
	w.agents = append(w.agents, a)
	return a
}

// tooLate is almost as long as an agent may be silent.
const tooLate = 800 * time.Millisecond

func (a *agent) heartbeat(t *testing.T) {
	// before the first connection, which may arrive before the next goroutine runs
	require.NoError(t, a.node.Beat())
	a.lastBeat.Store(time.Now().UnixNano())
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if now := time.Now().UnixNano(); now-a.lastBeat.Swap(now) > int64(tooLate) {
				a.late.Add(1)
			}
			_ = a.node.Beat()
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	a.fallSilent = sync.OnceFunc(func() {
		close(quit)
		<-done
		a.lastBeat.Store(0) // it is not late: it is silent
	})
	t.Cleanup(a.fallSilent)
}

// kill does what the kernel does when a process is killed: everything is closed, nothing is
// detached.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	a.fallSilent()
	for _, l := range a.listeners {
		require.NoError(t, l.Close())
	}
	require.NoError(t, a.program.Close())
	require.NoError(t, a.node.Close())
}

func (w *world) pins(t *testing.T) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(w.bpffs, "sidestep/*/*"))
	require.NoError(t, err)
	return pins
}

// nothingLeft asserts that bpffs is as it was, and no program is attached.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	assert.NoDirExists(t, filepath.Join(w.bpffs, "sidestep"), "something is left in bpffs")
	assert.Empty(t, w.attached(t), "something is still attached")
	assert.Empty(t, qdiscs(t, w.pod), "a qdisc is left")
}

// hooks is in how many places a program is attached.
func (w *world) hooks(t *testing.T) int {
	t.Helper()
	if w.datapath == steer.SkLookup {
		return 1
	}
	var links []netlink.Link
	require.NoError(t, w.pod.Do(func() (err error) {
		links, err = netlink.LinkList()
		return err
	}))
	require.GreaterOrEqual(t, len(links), 2)
	return len(links)
}

// attached lists what is attached in a pod: links of the namespace, and links and filters at its
// devices.
func (w *world) attached(t *testing.T) []string {
	t.Helper()
	all := socketLookups(t, w.pod.Inode())
	_ = w.pod.Do(func() error { // it may be gone
		links, err := netlink.LinkList()
		require.NoError(t, err)
		for _, l := range links {
			all = append(all, atIngress(t, l)...)
		}
		return nil
	})
	return all
}

func socketLookups(t *testing.T, inode uint64) (all []string) {
	t.Helper()
	for {
		all = nil
		it := new(link.Iterator)
		for it.Next() {
			info, err := it.Link.Info()
			if err == nil && info.NetNs() != nil && uint64(info.NetNs().NetnsInode) == inode {
				all = append(all, fmt.Sprintf("sk_lookup link %d", info.ID))
			}
		}
		it.Close()
		if errors.Is(it.Err(), unix.EAGAIN) {
			continue // someone is creating a link at this moment
		}
		require.NoError(t, it.Err())
		return all
	}
}

func atIngress(t *testing.T, device netlink.Link) (all []string) {
	t.Helper()
	// ErrNotSupported: a kernel without tcx.
	found, err := link.QueryPrograms(link.QueryOptions{Target: device.Attrs().Index,
		Attach: ebpf.AttachTCXIngress})
	if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		require.NoError(t, err)
	}
	if found != nil {
		for _, p := range found.Programs {
			id, _ := p.LinkID()
			all = append(all, fmt.Sprintf("%s tcx link %d", device.Attrs().Name, id))
		}
	}
	filters, err := netlink.FilterList(device, netlink.HANDLE_MIN_INGRESS)
	require.NoError(t, err)
	for _, f := range filters {
		all = append(all, fmt.Sprintf("%s %v", device.Attrs().Name, f.Attrs()))
	}
	return all
}

// qdiscs lists the places for filters in a pod.
func qdiscs(t *testing.T, pod *testnet.Pod) (all []string) {
	t.Helper()
	require.NoError(t, pod.Do(func() error {
		qdiscs, err := netlink.QdiscList(nil)
		for _, q := range qdiscs {
			if q.Attrs().Parent == netlink.HANDLE_CLSACT {
				all = append(all, fmt.Sprintf("%s %v", q.Type(), q.Attrs()))
			}
		}
		return err
	}))
	return all
}
