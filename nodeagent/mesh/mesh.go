// SPDX-License-Identifier: Apache-2.0

// Package mesh lets the steering recognize connections from a service mesh's sidecar to the app.
//
// Linkerd, Consul, and Istio where a Sidecar's defaultEndpoint is 127.0.0.1 connect like anybody
// else in the pod: from its own address to its own address, or on loopback. Programs at the pod's
// control group bind the sidecar's sockets to another address before they connect. They are not
// pinned, and so end with the process.
//
// Other proxies need nothing of this: Istio's and Kuma's connect from 127.0.0.6, and ztunnel from
// the client's address.
package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/cgroup"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// kinds are the known proxies: the port to which a pod's iptables rules redirect what arrives, and the
// user who listens there. The rules exempt the proxy by that user, so nobody else in the pod has it.
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

// userNamespace is the number of users in a pod's own user namespace.
const userNamespace = 1 << 16

// DialsFrom is the address that a mesh's proxy connects from when it connects to the app at
// 127.0.0.1.
var DialsFrom = bpf.MeshDialsFrom

// probers are the addresses from which meshes probe an app's health: Istio's sidecar on behalf of the
// kubelet, the kubelet itself in ambient mode, and other proxies as this package binds them.
var probers = []netip.Addr{
	netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), DialsFrom,
	netip.MustParseAddr("127.0.0.6"), netip.MustParseAddr("::6"),
	netip.MustParseAddr("169.254.7.127"), netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
}

// Node is what the pods of a node have in common. It is a part.Kind.
type Node struct {
	programs *cgroup.Shared[*bpf.Mesh]
}

// New returns a node whose processes are all seen below proc.
func New(proc string) *Node { return &Node{programs: cgroup.NewShared(proc, load)} }

func load() (*bpf.Mesh, []cgroup.Program, error) {
	objs, err := bpf.LoadMesh()
	if err != nil {
		return nil, nil, err
	}
	return objs, []cgroup.Program{
		{Program: objs.Mesh4, Attach: ebpf.AttachCGroupInet4Connect},
		{Program: objs.Mesh6, Attach: ebpf.AttachCGroupInet6Connect},
	}, nil
}

// Pod is one pod that may have a proxy. Its methods must not be called concurrently.
type Pod struct {
	node   *Node
	uid    string
	ns     *netns.Namespace
	cookie uint64
	use    *cgroup.Use[*bpf.Mesh]    // nil until a proxy was found
	noted  map[netip.AddrPort]uint32 // the proxy's user by target
	user   uint32                    // who the proxy is, where there is one
}

// Pod returns the pod with the UID. Nothing is attached before a proxy is found.
func (n *Node) Pod(uid string, ns *netns.Namespace) *Pod {
	return &Pod{node: n, uid: uid, ns: ns, noted: map[netip.AddrPort]uint32{}}
}

// Look finds out whether the pod has a proxy, and makes its connections to the targets known from now
// on. Call it from time to time: a proxy may start after the app. pids are some of the pod's
// processes.
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
		if err := p.use.Objects.MeshTargets.Put(bpf.MeshTarget(p.cookie, t),
			bpf.MeshProxy{Uid: uid}); err != nil {
			return proxy, fmt.Errorf("add mesh target %s of %s: %w", t, proxy.Name, err)
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
func (p *Pod) attach(pids []string) (err error) {
	if p.use != nil {
		return nil
	}
	if p.cookie, err = cookie(p.ns); err != nil {
		return err
	}
	use, err := p.node.programs.Use()
	if err != nil {
		return err
	}
	if err := use.AttachPod(p.uid, pids); err != nil {
		return errors.Join(err, use.Close())
	}
	p.use = use
	return nil
}

// cookie returns the number by which programs know a namespace.
func cookie(ns *netns.Namespace) (number uint64, err error) {
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
		return 0, fmt.Errorf("%w: %w", bpf.NeedsMesh, err)
	} else if err != nil {
		return 0, fmt.Errorf("get SO_NETNS_COOKIE of the pod's network namespace: %w", err)
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

// Missed returns a target to which the proxy has connected without being known, if there is one.
func (p *Pod) Missed() (target netip.AddrPort, missed bool) {
	for t := range p.noted {
		var proxy bpf.MeshProxy
		if p.use.Objects.MeshTargets.Lookup(bpf.MeshTarget(p.cookie, t), &proxy) == nil && proxy.Missed > 0 {
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
		if err := p.use.Objects.MeshTargets.Delete(bpf.MeshTarget(p.cookie, t)); err != nil &&
			!errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete mesh target %s: %w", t, err)
		}
		delete(p.noted, t)
	}
	return nil
}

// Close makes the proxy connect as it would without. Look may be called again.
func (p *Pod) Close() error {
	err := p.forget(func(netip.AddrPort) bool { return true })
	if p.use != nil {
		err = errors.Join(err, p.use.Close())
		p.use = nil
	}
	return err
}
