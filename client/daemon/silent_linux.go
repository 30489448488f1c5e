package daemon

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/client/intercept"
)

// silent says whether nothing listens on a local address. It is a hint, and it does not connect: the process may be one that serves a
// single connection.
func silent(addr string) bool {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !free(a) {
		return false
	}
	if a.Addr().String() == intercept.DefaultAddress {
		err := bind(netip.AddrPortFrom(netip.IPv6Loopback(), a.Port()))
		return err != unix.EADDRINUSE
	}
	return true
}

func free(a netip.AddrPort) bool { return bind(a) == nil }

// bind tries whether an address can be bound. A socket with SO_REUSEADDR that does not listen is in nobody's way.
func bind(a netip.AddrPort) error {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if a.Addr().Is4() {
		to = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.Bind(fd, to)
}
