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
	"sync/atomic"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/cgroup"
)

// Node is what the pods of a node have in common. It is a part.Kind.
type Node struct {
	programs *cgroup.Shared[*bpf.TCPStats]
	lastID   atomic.Uint32
}

// Pod counts for one pod.
type Pod struct {
	node    *Node
	netns   uint64 // cookie of the pod's namespace, 0 where the kernel does not tell
	use     *cgroup.Use[*bpf.TCPStats]
	objs    *bpf.TCPStats
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

// New returns a node whose processes are all seen below proc.
func New(proc string) *Node { return &Node{programs: cgroup.NewShared(proc, load)} }

func load() (*bpf.TCPStats, []cgroup.Program, error) {
	objs, err := bpf.LoadTCPStats()
	if err != nil {
		return nil, nil, err
	}
	return objs, []cgroup.Program{{Program: objs.Tcpstats, Attach: ebpf.AttachCGroupSockOps}}, nil
}

// Attach prepares to count for the pod with the UID. pids are some of its processes. Nothing is
// counted before Add.
func (n *Node) Attach(ns *netns.Namespace, uid string, pids []string) (*Pod, error) {
	cookie, err := cookieOf(ns)
	if err != nil {
		return nil, err
	}
	use, err := n.programs.Use()
	if err != nil {
		return nil, err
	}
	if err := use.AttachOwn(); err != nil {
		return nil, errors.Join(err, use.Close())
	}
	return &Pod{
		node: n, netns: cookie, use: use, objs: use.Objects, ports: map[netip.AddrPort]*port{},
		missing: use.AttachPod(uid, pids),
	}, nil
}

// cookieOf returns the number by which programs know a namespace.
func cookieOf(ns *netns.Namespace) (cookie uint64, err error) {
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
		return 0, fmt.Errorf("get SO_NETNS_COOKIE of the pod's network namespace: %w", err)
	}
	return cookie, nil
}

// Missing returns why connections that the app itself accepts are not all counted, or nil if they
// are. Steered ones are always counted.
func (c *Pod) Missing() error { return c.missing }

// Mark makes connections that a listener of the node agent accepts count as steered.
func (c *Pod) Mark(listener syscall.Conn) error {
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = c.objs.Notes.Put(int32(fd), bpf.ListenerNote) })
	if err := errors.Join(failed, err); err != nil {
		return fmt.Errorf("mark listener for counting: %w", err)
	}
	return nil
}

// Add counts the connections to an address and port of the pod from now on. At a loopback address
// only steered ones are counted, and none where the kernel does not tell namespaces apart.
func (c *Pod) Add(a netip.AddrPort) error {
	if a.Addr().IsLoopback() && c.netns == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ports[a] != nil {
		return nil
	}
	p := &port{id: c.node.lastID.Add(1)}
	cpus, err := ebpf.PossibleCPU()
	if err == nil {
		err = c.objs.Counted.Put(p.id, make([]bpf.Tallies, cpus))
	}
	if err == nil {
		if err = c.objs.Ports.Put(bpf.Port(c.netns, a), p.id); err != nil {
			err = errors.Join(err, c.objs.Counted.Delete(p.id))
		}
	}
	if err != nil {
		return fmt.Errorf("count the connections to %s: %w", a, err)
	}
	c.ports[a] = p
	return nil
}

// Remove stops counting and resets the counters.
func (c *Pod) Remove(a netip.AddrPort) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remove(a)
}

func (c *Pod) remove(a netip.AddrPort) error {
	p := c.ports[a]
	if p == nil {
		return nil
	}
	delete(c.ports, a)
	if err := errors.Join(c.objs.Ports.Delete(bpf.Port(c.netns, a)), c.objs.Counted.Delete(p.id)); err != nil {
		return fmt.Errorf("stop counting the connections to %s: %w", a, err)
	}
	return nil
}

// Discount subtracts an open steered connection from the counters: one of the node agent's own
// probes.
func (c *Pod) Discount(probe syscall.Conn) error {
	raw, err := probe.SyscallConn()
	if err != nil {
		return err
	}
	note := bpf.ListenerNote
	failed := raw.Control(func(fd uintptr) {
		if err = c.objs.Notes.Lookup(int32(fd), &note); err == nil {
			err = c.objs.Notes.Put(int32(fd), bpf.ListenerNote)
		}
	})
	switch err := errors.Join(failed, err); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("subtract probe from counters: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.ports {
		if p.id == note.Id {
			p.discounted++
		}
	}
	return nil
}

// Close stops counting.
func (c *Pod) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var errs []error
	for a := range c.ports {
		errs = append(errs, c.remove(a))
	}
	c.mu.Unlock()
	return errors.Join(append(errs, c.use.Close())...)
}
