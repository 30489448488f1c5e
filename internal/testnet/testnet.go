// SPDX-License-Identifier: Apache-2.0

// Package testnet makes nodes and pods out of network namespaces, for tests that need a real
// kernel.
package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
)

// RequireRoot skips the test without root, except in CI, where it fails.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

// Node is a network namespace that is connected with those of its pods. Clients run here.
type Node struct {
	*netns.Namespace
	proc string
	pods int
}

// NewNode makes a node without pods. It goes with the test.
func NewNode(t testing.TB) *Node {
	t.Helper()
	RequireRoot(t)
	n := &Node{Namespace: newNamespace(t), proc: t.TempDir()}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// Proc is a directory that looks like the node's /proc, as far as it takes to find the namespaces
// of pods.
func (n *Node) Proc() string { return n.proc }

// Pod is a network namespace with an IPv4 and an IPv6 address that are reachable from its node.
type Pod struct {
	*netns.Namespace
	UID    string
	IP4    netip.Addr
	IP6    netip.Addr
	node   *Node
	number int
	t      testing.TB
}

// NewPod makes a pod. It goes with the test, or with Delete.
func (n *Node) NewPod(t testing.TB) *Pod {
	t.Helper()
	n.pods++
	p := &Pod{
		Namespace: newNamespace(t), node: n, number: n.pods, t: t,
		UID: fmt.Sprintf("0a0b0c0d-1111-2222-3333-%012d", n.pods),
		IP4: netip.AddrFrom4([4]byte{198, 18, byte(n.pods), 2}),
		IP6: netip.MustParseAddr(fmt.Sprintf("fd00:%x::2", n.pods)),
	}
	require.NoError(t, n.Do(func() error {
		return p.Control(func(fd int) error {
			veth := &netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: p.port()}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd),
			}
			if err := netlink.LinkAdd(veth); err != nil {
				return fmt.Errorf("add veth: %w", err)
			}
			return up(p.port(), fmt.Sprintf("198.18.%d.1/24", p.number), fmt.Sprintf("fd00:%x::1/64", p.number))
		})
	}))
	require.NoError(t, p.Do(func() error {
		if err := up("eth0", p.IP4.String()+"/24", p.IP6.String()+"/64"); err != nil {
			return err
		}
		gw := net.IPv4(198, 18, byte(p.number), 1)
		return netlink.RouteAdd(&netlink.Route{Gw: gw})
	}))
	p.run(fmt.Sprint(1000 + p.number))
	t.Cleanup(p.Delete)
	for ip, ns := range map[string]*netns.Namespace{
		p.IP6.String(): p.Namespace, fmt.Sprintf("fd00:%x::1", p.number): n.Namespace,
	} {
		require.Eventually(t, func() bool { return local(ns, ip) }, 10*time.Second, time.Millisecond,
			"%s is not in use", ip)
	}
	return p
}

// local says whether an address is in use, which happens to those of IPv6 a moment after both ends
// of a veth are up.
func local(ns *netns.Namespace, ip string) bool {
	var routes []netlink.Route
	err := ns.Do(func() (err error) {
		routes, err = netlink.RouteGet(net.ParseIP(ip))
		return err
	})
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// IPs is the pod's addresses as texts.
func (p *Pod) IPs() []string { return []string{p.IP4.String(), p.IP6.String()} }

// run lets the node's /proc show a process of the pod.
func (p *Pod) run(pid string) {
	p.t.Helper()
	dir := filepath.Join(p.node.proc, pid)
	require.NoError(p.t, os.MkdirAll(filepath.Join(dir, "ns"), 0o755))
	// As on a node with both versions of control groups: the unified hierarchy (the line of 0) does
	// not follow the pods.
	own := unified(p.t)
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, "cgroup"),
		[]byte("1:name=systemd:/"+p.slices()+"\n0::"+own+"\n"), 0o644))
	stat := pid + " (app) S" + strings.Repeat(" 0", 18) + " 4711 0\n"
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644))
	require.NoError(p.t, p.Control(func(fd int) error {
		return os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), filepath.Join(dir, "ns/net"))
	}))
}

// slices is the path of the groups that a kubelet with systemd's driver makes.
func (p *Pod) slices() string {
	return "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" +
		strings.ReplaceAll(p.UID, "-", "_") +
		".slice/cri-containerd-0123456789abcdef.scope"
}

// Delete ends the pod: its process is gone, then its devices, and its namespace if nobody else
// holds it.
func (p *Pod) Delete() {
	_ = os.RemoveAll(filepath.Join(p.node.proc, fmt.Sprint(1000+p.number)))
	_ = p.node.Do(func() error {
		l, err := netlink.LinkByName(p.port())
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	_ = p.Close()
}

// Watch gives a function that says whether the pod's namespace no longer exists.
func Watch(t testing.TB, p *Pod) (gone func() bool) {
	t.Helper()
	require.NoError(t, rlimit.RemoveMemlock())
	// A program that does nothing tells by its link.
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = prog.Close() })
	var l *link.NetNsLink
	require.NoError(t, p.Control(func(fd int) (err error) {
		l, err = link.AttachNetNs(fd, prog)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return func() bool {
		info, err := l.Info()
		require.NoError(t, err)
		return info.NetNs().NetnsInode == 0
	}
}

func (p *Pod) port() string { return fmt.Sprintf("pod%d", p.number) }

// Listen listens in the namespace, as a Go program in a container would.
func Listen(t testing.TB, ns *netns.Namespace, address string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	require.NoError(t, ns.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// Dial connects from the namespace.
func Dial(ctx context.Context, ns *netns.Namespace, address netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, "tcp", address.String())
		return err
	})
	return c, err
}

// newNamespace makes a namespace in which lo is up.
func newNamespace(t testing.TB) *netns.Namespace {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const here = "/proc/thread-self/ns/net"
	home, err := os.Open(here)
	require.NoError(t, err)
	defer home.Close()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "make a network namespace")
	made, err := os.Open(here)
	if err == nil {
		err = up("lo")
	}
	require.NoError(t, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET), "come back from a new network namespace")
	require.NoError(t, err)
	defer made.Close()
	ns, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", made.Fd()))
	require.NoError(t, err)
	return ns
}

// up gives a device addresses and starts it.
func up(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", text, name, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}
