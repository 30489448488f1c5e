// SPDX-License-Identifier: Apache-2.0

// Package tcpstats counts the TCP connections to intercepted ports, in the kernel: how many, how
// many bytes, how long a round trip takes, what was sent again. A program at the control group of
// the node agent sees the connections that are steered, one at those of the pods those that their
// apps accept. They run when a connection is established and when it ends, add to counters that lie
// ready, and tell nobody: user space reads the counters when somebody asks for them. They are not
// pinned, and so gone with the process.
package tcpstats

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/cgroup"
)

// Node is what the pods of a node have in common.
type Node struct {
	proc string

	mu     sync.Mutex
	loaded *loaded // nil while there is no Hold
	lastID uint32
}

// loaded is open while there are Holds.
type loaded struct {
	tree  *cgroup.Tree
	objs  *bpf.TCPStats
	links *cgroup.Links
	refs  int
}

// Namespace is the network namespace of a pod.
type Namespace interface{ Do(fn func() error) error }

// Hold counts for one pod.
type Hold struct {
	node    *Node
	netns   uint64 // cookie of the pod's namespace, 0 where the kernel does not tell
	objs    *bpf.TCPStats
	groups  []cgroup.ID
	missing error

	mu     sync.Mutex
	closed bool
	ports  map[netip.AddrPort]*port
}

// port is an address and port that is counted.
type port struct {
	id         uint32
	discounted uint64
}

// New describes a node, whose processes are all seen below proc.
func New(proc string) *Node { return &Node{proc: proc} }

// Attach prepares the counting for the pod with the UID, of which the namespace and the numbers of
// some processes are given. Nothing is counted yet.
func (n *Node) Attach(ns Namespace, uid string, pids []string) (*Hold, error) {
	cookie, err := cookieOf(ns)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.load(); err != nil {
		return nil, err
	}
	h := &Hold{node: n, netns: cookie, objs: n.loaded.objs, ports: map[netip.AddrPort]*port{}}
	n.loaded.refs++
	own, err := n.loaded.tree.Own()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find the node agent's control group: %w", err), n.release(h))
	}
	if err := n.attach(h, own); err != nil {
		return nil, errors.Join(err, n.release(h))
	}
	groups, err := n.loaded.tree.OfPod(uid, pids)
	if err != nil {
		h.missing = fmt.Errorf("find the pod's control group: %w", err)
	}
	for _, g := range groups {
		h.missing = errors.Join(h.missing, n.attach(h, g))
	}
	return h, nil
}

// cookieOf is what programs know a namespace by.
func cookieOf(ns Namespace) (cookie uint64, err error) {
	if !bpf.NetnsInSockOps() {
		return 0, nil
	}
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("identify the pod's network namespace by its cookie: %w", err)
	}
	return cookie, nil
}

func (n *Node) load() error {
	if n.loaded != nil {
		return nil
	}
	tree, err := cgroup.Open(n.proc)
	if err != nil {
		return err
	}
	objs, err := bpf.LoadTCPStats()
	if err != nil {
		return errors.Join(err, tree.Close())
	}
	links := cgroup.NewLinks(cgroup.Program{Program: objs.Tcpstats, Attach: ebpf.AttachCGroupSockOps})
	n.loaded = &loaded{tree: tree, objs: objs, links: links}
	return nil
}

func (n *Node) attach(h *Hold, g *cgroup.Group) error {
	defer g.Close()
	if err := n.loaded.links.Attach(g); err != nil {
		return err
	}
	h.groups = append(h.groups, g.ID)
	return nil
}

func (n *Node) release(h *Hold) error {
	var errs []error
	for _, id := range h.groups {
		errs = append(errs, n.loaded.links.Detach(id))
	}
	if n.loaded.refs--; n.loaded.refs == 0 {
		errs = append(errs, n.loaded.objs.Close(), n.loaded.tree.Close())
		n.loaded = nil
	}
	return errors.Join(errs...)
}

func (n *Node) nextID() uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastID++
	return n.lastID
}

// Missing says why the connections that the app itself accepts are not counted, or not all of them;
// nil if they are. Those that are steered are counted always.
func (h *Hold) Missing() error { return h.missing }

// Mark makes what a listener of the node agent will accept known as steered.
func (h *Hold) Mark(listener syscall.Conn) error {
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = h.objs.Notes.Put(int32(fd), bpf.ListenerNote) })
	if err := errors.Join(failed, err); err != nil {
		return fmt.Errorf("mark a listener whose connections are to be counted: %w", err)
	}
	return nil
}

// Add counts the connections to an address and port of the pod from now on. At a loopback address
// only steered ones are counted, and none where the kernel does not tell namespaces apart.
func (h *Hold) Add(a netip.AddrPort) error {
	if a.Addr().IsLoopback() && h.netns == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.ports[a] != nil {
		return nil
	}
	p := &port{id: h.node.nextID()}
	cpus, err := ebpf.PossibleCPU()
	if err == nil {
		err = h.objs.Counted.Put(p.id, make([]bpf.Tallies, cpus))
	}
	if err == nil {
		if err = h.objs.Ports.Put(bpf.Port(h.netns, a), p.id); err != nil {
			err = errors.Join(err, h.objs.Counted.Delete(p.id))
		}
	}
	if err != nil {
		return fmt.Errorf("count the connections to %s: %w", a, err)
	}
	h.ports[a] = p
	return nil
}

// Remove stops counting, and forgets what was counted.
func (h *Hold) Remove(a netip.AddrPort) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.remove(a)
}

func (h *Hold) remove(a netip.AddrPort) error {
	p := h.ports[a]
	if p == nil {
		return nil
	}
	delete(h.ports, a)
	if err := errors.Join(h.objs.Ports.Delete(bpf.Port(h.netns, a)), h.objs.Counted.Delete(p.id)); err != nil {
		return fmt.Errorf("stop counting the connections to %s: %w", a, err)
	}
	return nil
}

// Discount takes a steered connection, which is open, out of the counters: it is one of the node
// agent's own probes.
func (h *Hold) Discount(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	note := bpf.ListenerNote
	failed := raw.Control(func(fd uintptr) {
		if err = h.objs.Notes.Lookup(int32(fd), &note); err == nil {
			err = h.objs.Notes.Put(int32(fd), bpf.ListenerNote)
		}
	})
	switch err := errors.Join(failed, err); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("take a probe out of the counters: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.ports {
		if p.id == note.Id {
			p.discounted++
		}
	}
	return nil
}

// Close stops counting.
func (h *Hold) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	var errs []error
	for a := range h.ports {
		errs = append(errs, h.remove(a))
	}
	h.mu.Unlock()
	h.node.mu.Lock()
	defer h.node.mu.Unlock()
	return errors.Join(append(errs, h.node.release(h))...)
}
