// SPDX-License-Identifier: Apache-2.0

package features

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
)

// TestKernel has a test for each feature. An older kernel that lacks it skips the test, which names
// the version from which on it must be there.
func TestKernel(t *testing.T) {
	testnet.RequireRoot(t)
	for _, f := range []struct {
		name         string
		major, minor int // first version that must have it
		try          func(t *testing.T) error
	}{
		{"sk_lookup", 5, 9, programs(ebpf.SkLookup, asm.FnSkAssign)},
		{"sk_assign in TC", 5, 7, programs(ebpf.SchedCLS, asm.FnSkAssign)},
		{"clsact", 4, 5, clsact},
		{"tcx", 6, 6, tcx},
		{"getpeername", 5, 8, getpeername},
		{"SOCK_DESTROY over IPv4", 4, 5, destroy("127.0.0.1:0")},
		{"SOCK_DESTROY over IPv6", 4, 5, destroy("[::1]:0")},
		{"ring buffer", 5, 8, func(*testing.T) error { return features.HaveMapType(ebpf.RingBuf) }},
		{"sockops", 4, 13, programs(ebpf.SockOps, asm.FnSkStorageGet)},
		{"types of the kernel", 5, 4, func(*testing.T) error { _, err := btf.LoadKernelSpec(); return err }},
		{"bounded loops", 5, 3, func(*testing.T) error { return features.HaveBoundedLoops() }},
		{"bpf_loop", 5, 17, programs(ebpf.SchedCLS, asm.FnLoop)},
		{"cookies of namespaces", 5, 14, cookie},
		{"memory of maps is the cgroup's", 5, 11, memory},
	} {
		t.Run(f.name, func(t *testing.T) {
			err := f.try(t)
			if err != nil && !testnet.KernelAtLeast(t, f.major, f.minor) {
				t.Log(err)
				t.Skip(bpf.Requirement{Feature: f.name, Linux: fmt.Sprintf("%d.%d", f.major, f.minor)}.Line())
			}
			require.NoError(t, err)
		})
	}
}

func programs(kind ebpf.ProgramType, helper asm.BuiltinFunc) func(*testing.T) error {
	return func(*testing.T) error { return features.HaveProgramHelper(kind, helper) }
}

// load returns a program that does nothing.
func load(t *testing.T, kind ebpf.ProgramType, attach ebpf.AttachType, result int32) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, AttachType: attach, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()},
	})
	if err == nil {
		t.Cleanup(func() { _ = p.Close() })
	}
	return p, err
}

const loopback = 1

// inside runs fn in a network namespace of its own.
func inside(t *testing.T, fn func() error) error {
	return testnet.NewNode(t).Do(fn)
}

func clsact(t *testing.T) error {
	p, err := load(t, ebpf.SchedCLS, ebpf.AttachNone, -1)
	if err != nil {
		return err
	}
	return inside(t, func() error {
		qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: loopback,
			Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		if err := netlink.QdiscAdd(qdisc); err != nil {
			return fmt.Errorf("add the qdisc: %w", err)
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: loopback, Parent: netlink.HANDLE_MIN_INGRESS,
				Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd: p.FD(), Name: "nothing", DirectAction: true,
		})
	})
}

func tcx(t *testing.T) error {
	p, err := load(t, ebpf.SchedCLS, ebpf.AttachTCXIngress, -1)
	if err != nil {
		return err
	}
	return inside(t, func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: loopback, Program: p,
			Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		return l.Close()
	})
}

func getpeername(t *testing.T) error {
	for _, attach := range []ebpf.AttachType{ebpf.AttachCgroupInet4GetPeername,
		ebpf.AttachCgroupInet6GetPeername} {
		if _, err := load(t, ebpf.CGroupSockAddr, attach, 1); err != nil {
			return err
		}
	}
	return nil
}

// destroy ends one side of an established connection, whose other side must be told.
func destroy(address string) func(*testing.T) error {
	return func(t *testing.T) error {
		node := testnet.NewNode(t)
		l := testnet.Listen(t, node.Namespace, address)
		c, err := testnet.Dial(t.Context(), node.Namespace, l.Addr().(*net.TCPAddr).AddrPort())
		require.NoError(t, err)
		defer c.Close()
		accepted, err := l.Accept()
		require.NoError(t, err)
		defer accepted.Close()
		err = node.Do(func() error { return sockDestroy(addrOf(c.LocalAddr()), addrOf(c.RemoteAddr())) })
		if err != nil {
			return err
		}
		require.NoError(t, accepted.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err = accepted.Read(make([]byte, 1))
		require.ErrorIs(t, err, unix.ECONNRESET)
		return nil
	}
}

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// sockDestroy speaks sock_diag(7) itself, for netlink's function is for IPv4 alone.
func sockDestroy(local, remote netip.AddrPort) error {
	const sockDestroy, anyCookie = 21, 0xff
	family := byte(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	// struct inet_diag_req_v2: family, protocol, extensions, padding, states, then struct
	// inet_diag_sockid.
	var b bytes.Buffer
	b.Write([]byte{family, unix.IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff})
	for _, a := range []netip.AddrPort{local, remote} {
		b.Write([]byte{byte(a.Port() >> 8), byte(a.Port())})
	}
	for _, a := range []netip.AddrPort{local, remote} {
		b.Write(append(a.Addr().AsSlice(), make([]byte, 16-len(a.Addr().AsSlice()))...))
	}
	b.Write(append(make([]byte, 4), bytes.Repeat([]byte{anyCookie}, 8)...)) // any interface
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	message := netlinkMessage(sockDestroy, unix.NLM_F_REQUEST|unix.NLM_F_ACK, b.Bytes())
	if err := unix.Sendto(s, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil || n < 20 {
		return fmt.Errorf("answer of %d bytes: %w", n, err)
	}
	if code := -int32(le.Uint32(answer[16:])); code != 0 {
		return unix.Errno(code)
	}
	return nil
}

func cookie(t *testing.T) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(s)
	_, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err
}

// memory makes a map with a limit on locked memory that leaves no room for it.
func memory(t *testing.T) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 0, Max: before.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before)) }()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 16, MaxEntries: 1})
	if err != nil {
		return err
	}
	return m.Close()
}

func TestMain(m *testing.M) {
	// This is the limit of the tests' own process. A node agent lifts its limit in the same way.
	_ = rlimit.RemoveMemlock()
	m.Run()
}
