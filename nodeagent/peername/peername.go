// Package peername lets apps see their clients: the connections by which the node agent passes on what is not for a laptop come from the
// pod's own address, and yet accept and getpeername give the app the address and port of the client. Nothing is added to what is
// sent. Programs at the pod's control group answer these calls; they are not pinned, and so gone with the process.
//
// Whoever asks in other ways, such as ss or a packet filter in the pod, sees the pod's address.
package peername

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/cgroup"
)

// Node is what the pods of a node have in common.
type Node struct {
	proc string

	mu       sync.Mutex
	loaded   *loaded // nil while there is no Hold
	attached map[cgroup.ID]*group
}

// loaded is open while there are Holds.
type loaded struct {
	tree *cgroup.Tree
	objs *bpf.Peername
	refs int
}

// group is a control group at which the programs are. Several pods have the same where the node's unified hierarchy does not follow
// its pods.
type group struct {
	links []link.Link
	refs  int
}

// Hold keeps the programs attached for one pod.
type Hold struct {
	node   *Node
	notes  *ebpf.Map
	groups []cgroup.ID
	once   sync.Once
}

// New describes a node, whose processes are all seen below proc.
func New(proc string) *Node {
	return &Node{proc: proc, attached: map[cgroup.ID]*group{}}
}

// Attach prepares the pod with the UID, of which some processes are given by their numbers, for being told its clients.
func (n *Node) Attach(uid string, pids []string) (*Hold, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.load(); err != nil {
		return nil, err
	}
	h := &Hold{node: n, notes: n.loaded.objs.Clients}
	n.loaded.refs++
	groups, err := n.loaded.tree.OfPod(uid, pids)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find the pod's control group: %w", err), n.release(h))
	}
	for _, g := range groups {
		if err == nil {
			err = n.attach(h, g)
		}
		err = errors.Join(err, g.Close())
	}
	if err != nil {
		return nil, errors.Join(err, n.release(h))
	}
	return h, nil
}

func (n *Node) load() error {
	if n.loaded != nil {
		return nil
	}
	tree, err := cgroup.Open(n.proc)
	if err != nil {
		return err
	}
	objs, err := bpf.LoadPeername()
	if err != nil {
		return errors.Join(err, tree.Close())
	}
	n.loaded = &loaded{tree: tree, objs: objs}
	return nil
}

func (n *Node) attach(h *Hold, g *cgroup.Group) error {
	at := n.attached[g.ID]
	if at == nil {
		at = &group{}
		for _, p := range []struct {
			attach  ebpf.AttachType
			program *ebpf.Program
		}{
			{ebpf.AttachCgroupInet4GetPeername, n.loaded.objs.Peername4},
			{ebpf.AttachCgroupInet6GetPeername, n.loaded.objs.Peername6},
		} {
			l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(g.Fd()), Program: p.program, Attach: p.attach})
			if err != nil {
				return errors.Join(fmt.Errorf("attach %s to control group %s: %w", p.attach, g.Path, err), at.close())
			}
			at.links = append(at.links, l)
		}
		n.attached[g.ID] = at
	}
	at.refs++
	h.groups = append(h.groups, g.ID)
	return nil
}

// Introduce says whom a socket, which is about to connect to the app, is for. It has to be done before, since the app may ask as
// soon as there is a connection.
func (h *Hold) Introduce(fd int, client netip.AddrPort) error {
	if err := h.notes.Put(int32(fd), bpf.Client(client)); err != nil {
		return fmt.Errorf("note %s on a connection to the app: %w", client, err)
	}
	return nil
}

// Close lets the app see the pod's address again, also on connections that are open. Introduce must not be called any more.
func (h *Hold) Close() (err error) {
	h.once.Do(func() {
		h.node.mu.Lock()
		defer h.node.mu.Unlock()
		err = h.node.release(h)
	})
	return err
}

func (n *Node) release(h *Hold) error {
	var errs []error
	for _, id := range h.groups {
		at := n.attached[id]
		if at.refs--; at.refs == 0 {
			errs = append(errs, at.close())
			delete(n.attached, id)
		}
	}
	if n.loaded.refs--; n.loaded.refs == 0 {
		errs = append(errs, n.loaded.objs.Close(), n.loaded.tree.Close())
		n.loaded = nil
	}
	return errors.Join(errs...)
}

func (g *group) close() error {
	var errs []error
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
