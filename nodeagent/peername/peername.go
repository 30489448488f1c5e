// SPDX-License-Identifier: Apache-2.0

// Package peername lets apps see their clients: the connections by which the node agent passes on
// what is not for a laptop come from the pod's own address, and yet accept and getpeername give the
// app the address and port of the client. Nothing is added to what is sent. Programs at the pod's
// control group answer these calls; they are not pinned, and so gone with the process.
//
// Whoever asks in other ways, such as ss or a packet filter in the pod, sees the pod's address.
package peername

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/cgroup"
)

// Node is what the pods of a node have in common.
type Node struct {
	proc string

	mu     sync.Mutex
	loaded *loaded // nil while there is no Hold
}

// loaded is open while there are Holds.
type loaded struct {
	tree  *cgroup.Tree
	objs  *bpf.Peername
	links *cgroup.Links
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
	return &Node{proc: proc}
}

// Attach prepares the pod with the UID, of which some processes are given by their numbers, for
// being told its clients.
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
			if err = n.loaded.links.Attach(g); err == nil {
				h.groups = append(h.groups, g.ID)
			}
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
	links := cgroup.NewLinks(
		cgroup.Program{Program: objs.Peername4, Attach: ebpf.AttachCgroupInet4GetPeername},
		cgroup.Program{Program: objs.Peername6, Attach: ebpf.AttachCgroupInet6GetPeername},
	)
	n.loaded = &loaded{tree: tree, objs: objs, links: links}
	return nil
}

// Introduce says whom a socket, which is about to connect to the app, is for. It has to be done
// before, since the app may ask as soon as there is a connection.
func (h *Hold) Introduce(fd int, client netip.AddrPort) error {
	if err := h.notes.Put(int32(fd), bpf.Client(client)); err != nil {
		return fmt.Errorf("note %s on a connection to the app: %w", client, err)
	}
	return nil
}

// Close lets the app see the pod's address again, also on connections that are open. Introduce must
// not be called any more.
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
		errs = append(errs, n.loaded.links.Detach(id))
	}
	if n.loaded.refs--; n.loaded.refs == 0 {
		errs = append(errs, n.loaded.objs.Close(), n.loaded.tree.Close())
		n.loaded = nil
	}
	return errors.Join(errs...)
}
