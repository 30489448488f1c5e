// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/client/intercept"
)

// silent reports whether nothing listens on a local address. It is a hint. It does not connect,
// because the process may be one that serves a single connection.
func silent(addr, protocol string) bool {
	kind := unix.SOCK_STREAM
	if protocol == "UDP" {
		kind = unix.SOCK_DGRAM
	}
	a, err := netip.ParseAddrPort(addr)
	if err != nil || bind(a, kind) != nil {
		return false
	}
	if a.Addr().String() == intercept.DefaultAddress {
		err := bind(netip.AddrPortFrom(netip.IPv6Loopback(), a.Port()), kind)
		return err != unix.EADDRINUSE
	}
	return true
}

// bind tries whether an address can be bound. A TCP socket with SO_REUSEADDR that does not listen
// disturbs no other. A UDP socket would receive what arrives at this moment, and with SO_REUSEADDR
// the bind would succeed beside others that have the option.
func bind(a netip.AddrPort, kind int) error {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if a.Addr().Is4() {
		to = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, to)
}
