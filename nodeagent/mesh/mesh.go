// SPDX-License-Identifier: Apache-2.0

// Package mesh makes the connections of a service mesh's proxy to the app known to the steering,
// where the proxy runs in the pod and connects like anybody else in it: from the pod's address to
// the pod's address, or on loopback. So do Linkerd, Consul, and Istio where a Sidecar's
// defaultEndpoint is 127.0.0.1. Programs at the pod's control group bind the proxy's sockets to
// another address before they connect; they are not pinned, and so gone with the process.
//
// Proxies that connect from an address of their own need nothing of this: Istio's and Kuma's come
// from 127.0.0.6, and ztunnel's from the client's address.
package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/cgroup"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// kinds are the proxies that are known, by the port to which a pod's rules send what arrives, and
// by the user who listens there. The same rules know the proxies by these users, so nobody else in
// a pod has them.
var kinds = []struct {
	Proxy
	port uint16
	uid  uint32
}{
	{Proxy{"Linkerd", false}, 4143, 2102},
	{Proxy{"Istio", true}, 15006, 1337},
	{Proxy{"Kuma", true}, 15006, 5678},
	{Proxy{"Consul", false}, 20000, 5995},
}

// Proxy is what is known about the proxies of a mesh.
type Proxy struct {
	Name string // empty: there is none
	// Known is whether, unless configured otherwise, it connects to the app from an address of its
	// own.
	Known bool
}

// userNamespace is how many users a pod has that has a user namespace of its own.
const userNamespace = 1 << 16

// DialsFrom is the address that a mesh's proxy connects from when it connects to the app at
// 127.0.0.1.
var DialsFrom = bpf.MeshDialsFrom

// Probers are addresses that meshes give to what asks for an app's health: on behalf of the kubelet
// in Istio's sidecar, and the kubelet itself in its ambient mode; and those that other proxies get
// here.
var Probers = []netip.Addr{
	netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), DialsFrom,
	netip.MustParseAddr("127.0.0.6"), netip.MustParseAddr("::6"),
	netip.MustParseAddr("169.254.7.127"), netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
}

// Node is what the pods of a node have in common.
type Node struct {
	proc string

	mu   sync.Mutex
	objs *bpf.Mesh // nil until a proxy was found
}

// New describes a node, whose processes are all seen below proc.
func New(proc string) *Node { return &Node{proc: proc} }

// Namespace is the network namespace of a pod.
type Namespace interface {
	Do(fn func() error) error
}

// Pod is one pod that may have a proxy. Its methods must not be called concurrently.
type Pod struct {
	node   *Node
	uid    string
	ns     Namespace
	cookie uint64
	links  []link.Link
	noted  map[netip.AddrPort]uint32 // the proxy's user by target
	user   uint32                    // who the proxy is, where there is one
}

// Open describes the pod with the UID. Nothing is attached yet.
func (n *Node) Open(uid string, ns Namespace) *Pod {
	return &Pod{node: n, uid: uid, ns: ns, noted: map[netip.AddrPort]uint32{}}
}

// Look sees whether the pod has a proxy, and makes its connections to the targets known from now
// on. It is to be called from time to time, since a proxy may start after the app. pids are the
// numbers of some of the pod's processes.
func (p *Pod) Look(targets []netip.AddrPort, pids []string) (Proxy, error) {
	proxy, uid, err := p.find()
	if err != nil {
		return Proxy{}, err
	}
	if proxy.Name == "" {
		return Proxy{}, p.forget(func(netip.AddrPort) bool { return true })
	}
	p.user = uid
	if err := p.attach(pids); err != nil {
		return proxy, err
	}
	for _, t := range targets {
		if p.noted[t] == uid {
			continue
		}
		if err := p.node.objs.MeshTargets.Put(bpf.MeshTarget(p.cookie, t),
			bpf.MeshProxy{Uid: uid}); err != nil {
			return proxy, fmt.Errorf("note that %s's connections to %s are a mesh's: %w", proxy.Name, t, err)
		}
		p.noted[t] = uid
	}
	return proxy, p.forget(func(t netip.AddrPort) bool { return !slices.Contains(targets, t) })
}

// find looks for a proxy that listens in the pod.
func (p *Pod) find() (proxy Proxy, uid uint32, err error) {
	err = p.ns.Do(func() error {
		for _, k := range kinds {
			users, err := sockdiag.Listeners(k.port)
			if err != nil {
				return err
			}
			for _, user := range users {
				if user%userNamespace == k.uid {
					proxy, uid = k.Proxy, user
					return nil
				}
			}
		}
		return nil
	})
	return proxy, uid, err
}

// attach attaches the programs, once.
func (p *Pod) attach(pids []string) error {
	if len(p.links) > 0 {
		return nil
	}
	objs, err := p.node.load()
	if err != nil {
		return err
	}
	if p.cookie, err = cookie(p.ns); err != nil {
		return err
	}
	tree, err := cgroup.Open(p.node.proc)
	if err != nil {
		return err
	}
	defer tree.Close()
	groups, err := tree.OfPod(p.uid, pids)
	if err != nil {
		return fmt.Errorf("find the pod's control group: %w", err)
	}
	for _, g := range groups {
		for at, program := range map[ebpf.AttachType]*ebpf.Program{
			ebpf.AttachCGroupInet4Connect: objs.Mesh4, ebpf.AttachCGroupInet6Connect: objs.Mesh6,
		} {
			l, attachErr := link.AttachRawLink(link.RawLinkOptions{Target: int(g.Fd()),
				Program: program, Attach: at})
			if attachErr != nil {
				err = errors.Join(err, fmt.Errorf("attach %s to control group %s: %w", at, g.Path, attachErr))
				continue
			}
			p.links = append(p.links, l)
		}
		err = errors.Join(err, g.Close())
	}
	if err != nil {
		return errors.Join(err, p.detach())
	}
	return nil
}

func (n *Node) load() (*bpf.Mesh, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.objs == nil {
		objs, err := bpf.LoadMesh()
		if err != nil {
			return nil, err
		}
		n.objs = objs
	}
	return n.objs, nil
}

// cookie gives the number of the namespace that programs see.
func cookie(ns Namespace) (number uint64, err error) {
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		number, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, fmt.Errorf("telling a mesh's proxy from the rest of its pod needs Linux 5.14: %w", err)
	} else if err != nil {
		return 0, fmt.Errorf("ask for the number of the pod's network namespace: %w", err)
	}
	return number, nil
}

// Older counts the proxy's open connections to a port which the app has accepted, so that nothing
// on them is seen.
func (p *Pod) Older(port uint16) (n int, err error) {
	err = p.ns.Do(func() error {
		accepted, err := sockdiag.List(port)
		if err != nil {
			return err
		}
		dialled, err := sockdiag.ListTo(port)
		if err != nil {
			return err
		}
		proxys := map[[2]netip.AddrPort]bool{}
		for _, s := range dialled {
			if s.User == p.user {
				proxys[[2]netip.AddrPort{s.Remote, s.Local}] = true
			}
		}
		for _, s := range accepted {
			if !s.Marked && proxys[[2]netip.AddrPort{s.Local, s.Remote}] {
				n++
			}
		}
		return nil
	})
	return n, err
}

// Missed gives a target to which the proxy has connected without being made known, if there is one.
func (p *Pod) Missed() (target netip.AddrPort, missed bool) {
	for t := range p.noted {
		var proxy bpf.MeshProxy
		if p.node.objs.MeshTargets.Lookup(bpf.MeshTarget(p.cookie, t), &proxy) == nil && proxy.Missed > 0 {
			return t, true
		}
	}
	return netip.AddrPort{}, false
}

func (p *Pod) forget(which func(netip.AddrPort) bool) error {
	for t := range p.noted {
		if !which(t) {
			continue
		}
		if err := p.node.objs.MeshTargets.Delete(bpf.MeshTarget(p.cookie, t)); err != nil &&
			!errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget that connections to %s are a mesh's: %w", t, err)
		}
		delete(p.noted, t)
	}
	return nil
}

// Close lets the proxy connect as it would without.
func (p *Pod) Close() error {
	return errors.Join(p.detach(), p.forget(func(netip.AddrPort) bool { return true }))
}

func (p *Pod) detach() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	p.links = nil
	return errors.Join(errs...)
}

// Close lets go of the programs. All pods must be closed.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.objs == nil {
		return nil
	}
	return n.objs.Close()
}
