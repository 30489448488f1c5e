// SPDX-License-Identifier: Apache-2.0

// Package peername shows apps their clients' addresses. The proxy's connections to the app come from
// the pod's own address, and yet accept(2) and getpeername(2) return the address and port of the
// client. Nothing is added to the bytes. Programs at the pod's control group answer these calls;
// they are not pinned, and so end with the process.
//
// Whoever asks in other ways, such as ss or a packet filter in the pod, sees the pod's address.
package peername

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/cgroup"
)

// Node is what the pods of a node have in common. It is a part.Kind.
type Node struct {
	programs *cgroup.Shared[*bpf.Peername]
	required bool
}

// New returns a node whose processes are all seen below proc. With required, no TCP port is steered
// whose app cannot be shown its clients, and a connection is reset rather than shown as the pod's own.
func New(proc string, required bool) *Node {
	return &Node{programs: cgroup.NewShared(proc, load), required: required}
}

func load() (*bpf.Peername, []cgroup.Program, error) {
	objs, err := bpf.LoadPeername()
	if err != nil {
		return nil, nil, err
	}
	return objs, []cgroup.Program{
		{Program: objs.Peername4, Attach: ebpf.AttachCgroupInet4GetPeername},
		{Program: objs.Peername6, Attach: ebpf.AttachCgroupInet6GetPeername},
	}, nil
}

// Pod keeps the programs attached for one pod.
type Pod struct {
	use *cgroup.Use[*bpf.Peername]
}

// Attach attaches the programs for the pod with the UID. pids are some of its processes.
func (n *Node) Attach(uid string, pids []string) (*Pod, error) {
	use, err := n.programs.Use()
	if err != nil {
		return nil, err
	}
	if err := use.AttachPod(uid, pids); err != nil {
		return nil, errors.Join(err, use.Close())
	}
	return &Pod{use: use}, nil
}

// SetPeer sets the client that a socket's connection to the app is for. It must be called before
// the socket connects, since the app may ask as soon as there is a connection.
func (p *Pod) SetPeer(fd int, client netip.AddrPort) error {
	if err := p.use.Objects.Clients.Put(int32(fd), bpf.Client(client)); err != nil {
		return fmt.Errorf("set client %s of a connection to the app: %w", client, err)
	}
	return nil
}

// Close makes the app see the pod's address again, also on connections that are open. SetPeer must
// not be called any more.
func (p *Pod) Close() error { return p.use.Close() }
