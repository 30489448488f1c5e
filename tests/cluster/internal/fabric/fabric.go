// SPDX-License-Identifier: Apache-2.0

// Package fabric builds the network between machines: a network namespace for each, a bridge
// between the control plane and the nodes, and point-to-point links from the control plane to
// machines that may reach the API server and nothing else. Nothing leads out of it.
package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
)

// netnsDir is where ip(8) also looks for network namespaces.
const netnsDir = "/run/netns"

// Path is the handle of a machine's network namespace.
func Path(p plan.Plan, name string) string { return filepath.Join(netnsDir, p.Netns(name)) }

// Up creates what is missing of the network.
func Up(p plan.Plan) error {
	if len(Inodes(p)) == 0 {
		if err := shareNetnsDir(); err != nil {
			return err
		}
	}
	for _, name := range append(p.Machines(), plan.Fabric) {
		if err := createNetns(Path(p, name)); err != nil {
			return err
		}
		if err := machine.InNetns(Path(p, name), func() error { return setSysctls(p, name) }); err != nil {
			return fmt.Errorf("set up network of %s: %w", name, err)
		}
	}
	if err := layBridge(p); err != nil {
		return err
	}
	if err := attach(p, plan.ControlPlane, p.ControlPlaneAddresses()); err != nil {
		return err
	}
	for _, node := range p.AllNodes() {
		if err := attach(p, node.Name, node.Addresses); err != nil {
			return err
		}
	}
	if err := routePods(p); err != nil {
		return err
	}
	if err := join(p, Path(p, plan.Laptop), "eth0", plan.Laptop, p.LaptopLink()); err != nil {
		return err
	}
	if !p.HostLink {
		return nil
	}
	return join(p, "/proc/thread-self/ns/net", p.HostDevice(), "host", p.RootLink())
}

// Down removes the network.
func Down(p plan.Plan) error {
	var failures []error
	// The device goes with the other end's namespace, but some time later.
	if link, err := netlink.LinkByName(p.HostDevice()); err == nil && p.HostLink {
		if err := netlink.LinkDel(link); err != nil {
			failures = append(failures, fmt.Errorf("remove %s: %w", p.HostDevice(), err))
		}
	}
	for _, name := range append(p.Machines(), plan.Fabric) {
		failures = append(failures, removeNetns(Path(p, name)))
	}
	return errors.Join(append(failures, leaveNetnsDir())...)
}

// shareNetnsDir makes the directory a shared mount, as ip(8) does when it is none. If a later "ip
// netns add" did so, its new mount would hide the namespaces made here, and they could not be
// removed. For the same reason it happens before any is made.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount
		err = errors.Join(
			unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""),
			unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, ""))
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}

// leaveNetnsDir removes the directory's mount unless a network namespace is there.
func leaveNetnsDir() error {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		return nil
	}
	if err == nil {
		err = unix.Unmount(netnsDir, unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount
		return fmt.Errorf("remove the mount of %s: %w", netnsDir, err)
	}
	return nil
}

// Inodes identify the network namespaces of machines, as far as they exist; of all machines if none
// is named.
func Inodes(p plan.Plan, names ...string) map[uint64]bool {
	if len(names) == 0 {
		names = append(p.Machines(), plan.Fabric)
	}
	inodes := map[uint64]bool{}
	for _, name := range names {
		var stat unix.Stat_t
		if isNetns(Path(p, name)) && unix.Stat(Path(p, name), &stat) == nil {
			inodes[stat.Ino] = true
		}
	}
	return inodes
}

func isNetns(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

func createNetns(path string) error {
	if isNetns(path) {
		return nil
	}
	// A namespace is created by a thread that enters it.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			// of an interrupted run
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.WriteFile(path, nil, 0o444); err != nil {
				return err
			}
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return nil
}

func removeNetns(path string) error {
	for isNetns(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("remove network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}

// setSysctls runs inside the namespace. What a new namespace begins with depends on the computer's
// own settings.
func setSysctls(p plan.Plan, name string) error {
	forward := "0"
	if name != plan.ControlPlane && name != plan.Laptop && name != plan.Fabric {
		forward = "1"
	}
	settings := map[string]string{
		"ipv4/ip_forward":                forward,
		"ipv4/conf/all/rp_filter":        "0",
		"ipv6/conf/all/forwarding":       forward,
		"ipv6/conf/all/disable_ipv6":     "0",
		"ipv6/conf/default/disable_ipv6": "0",
		"ipv6/conf/all/accept_ra":        "0",
		"ipv6/conf/default/accept_ra":    "0",
		// Our addresses are unique, and duplicate address detection would delay every pod.
		"ipv6/conf/all/accept_dad":     "0",
		"ipv6/conf/default/accept_dad": "0",
	}
	for key, value := range settings {
		err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
		if errors.Is(err, fs.ErrNotExist) && p.Family == plan.IPv4 {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const bridgeName = "bridge"

func layBridge(p plan.Plan) error {
	return within(Path(p, plan.Fabric), func(handle *netlink.Handle) error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = bridgeName
		err := handle.LinkAdd(&netlink.Bridge{LinkAttrs: attributes})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add bridge: %w", err)
		}
		return bringUp(handle, bridgeName)
	})
}

// attach joins a machine to the bridge.
func attach(p plan.Plan, name string, addresses []netip.Prefix) error {
	fail := func(err error) error { return fmt.Errorf("attach %s to the bridge: %w", name, err) }
	port := name
	if name == plan.ControlPlane {
		port = "control"
	}
	if err := veth(Path(p, plan.Fabric), port, Path(p, name), "eth0"); err != nil {
		return fail(err)
	}
	err := within(Path(p, plan.Fabric), func(handle *netlink.Handle) error {
		bridge, err := handle.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		link, err := handle.LinkByName(port)
		if err != nil {
			return err
		}
		if err := handle.LinkSetMaster(link, bridge); err != nil {
			return err
		}
		return bringUp(handle, port)
	})
	if err != nil {
		return fail(err)
	}
	if err := within(Path(p, name),
		func(handle *netlink.Handle) error { return address(handle, "eth0", addresses) }); err != nil {
		return fail(err)
	}
	return nil
}

// routePods gives everything on the bridge the routes to each node's pods. Nodes also get a default
// route, because a service's address must be routable before it is translated. It ends at the
// control plane, which forwards nothing.
func routePods(p plan.Plan) error {
	nodes := p.AllNodes()
	for _, name := range p.Machines() {
		if name == plan.Laptop {
			continue
		}
		err := within(Path(p, name), func(handle *netlink.Handle) error {
			for _, node := range nodes {
				if node.Name == name {
					continue
				}
				for i, pods := range node.Pods {
					if err := route(handle, pods, node.Addresses[i].Addr()); err != nil {
						return err
					}
				}
			}
			if name == plan.ControlPlane {
				return nil
			}
			for _, gateway := range p.ControlPlaneAddresses() {
				everywhere := netip.PrefixFrom(unspecified(gateway.Addr()), 0)
				if err := route(handle, everywhere, gateway.Addr()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("set routes of %s: %w", name, err)
		}
	}
	return nil
}

// join adds a link between the control plane and a namespace that may reach the API server alone.
func join(p plan.Plan, path, device, name string, link plan.Link) error {
	fail := func(err error) error { return fmt.Errorf("link %s to the API server: %w", name, err) }
	if err := veth(Path(p, plan.ControlPlane), name, path, device); err != nil {
		return fail(err)
	}
	err := within(Path(p, plan.ControlPlane),
		func(handle *netlink.Handle) error { return address(handle, name, link.Near) })
	if err != nil {
		return fail(err)
	}
	err = within(path, func(handle *netlink.Handle) error {
		if err := address(handle, device, link.Far); err != nil {
			return err
		}
		for i, target := range p.ControlPlaneAddresses() {
			single := netip.PrefixFrom(target.Addr(), target.Addr().BitLen())
			if err := route(handle, single, link.Near[i].Addr()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// within calls run with a netlink handle in a namespace.
func within(path string, run func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer handle.Close()
	if err := bringUp(handle, "lo"); err != nil {
		return err
	}
	return run(handle)
}

// veth joins two namespaces by a pair of devices, unless they are joined.
func veth(path, name, peerPath, peerName string) error {
	peer, err := netns.GetFromPath(peerPath)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", peerPath, err)
	}
	defer peer.Close()
	return within(path, func(handle *netlink.Handle) error {
		if _, err := handle.LinkByName(name); err == nil {
			return nil // both ends live and die together
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		err := handle.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: peerName,
			PeerNamespace: netlink.NsFd(peer)})
		if err != nil {
			return fmt.Errorf("add devices %s and %s: %w", name, peerName, err)
		}
		return nil
	})
}

func bringUp(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", name, err)
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func address(handle *netlink.Handle, device string, prefixes []netip.Prefix) error {
	link, err := handle.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", device, err)
	}
	for _, prefix := range prefixes {
		wanted := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			wanted.Flags = unix.IFA_F_NODAD
		}
		if err := handle.AddrReplace(link, wanted); err != nil {
			return fmt.Errorf("add %s to %s: %w", prefix, device, err)
		}
	}
	return nil
}

func route(handle *netlink.Handle, target netip.Prefix, gateway netip.Addr) error {
	err := handle.RouteReplace(&netlink.Route{Dst: ipNet(target), Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("route %s via %s: %w", target, gateway, err)
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   prefix.Addr().AsSlice(),
		Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
