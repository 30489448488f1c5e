// SPDX-License-Identifier: Apache-2.0

package datagrams

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
)

// received is SO_RCVBUF of a socket, in bytes, including the kernel's own overhead.
const received = 4 << 20

// listen opens a UDP socket on a free port of ip, an address of the loopback device, in the
// namespace. It receives what is steered to it, and reports for each datagram its original
// destination.
func listen(ns *netns.Namespace, ip netip.Addr) (*net.UDPConn, error) {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR
	if ip.Is6() {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	fd, err := socket(ns, family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket in the pod: %w", err)
	}
	file := os.NewFile(uintptr(fd), "datagrams")
	defer file.Close()
	if ip.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, fmt.Errorf("restrict the UDP socket on %s to IPv6: %w", ip, err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return nil, fmt.Errorf("ask for the destinations of datagrams: %w", err)
	}
	// SO_RCVBUFFORCE exceeds the namespace's net.core.rmem_max. With less room, more is lost in
	// bursts.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, received)
	if err := unix.Bind(fd, sockaddr(ip, 0)); err != nil {
		return nil, fmt.Errorf("bind a UDP socket to %s: %w", ip, err)
	}
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("adopt the UDP socket on %s: %w", ip, err)
	}
	return c.(*net.UDPConn), nil
}

func socket(ns *netns.Namespace, family, kind, protocol int) (fd int, err error) {
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	return fd, err
}

// destination returns the original destination from a datagram's control messages.
func destination(control []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("parse what came with a datagram: %w", err)
	}
	for i := range messages {
		to, err := unix.ParseOrigDstAddr(&messages[i])
		if err != nil {
			continue // another control message
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), nil
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(to.Addr).Unmap(), uint16(to.Port)), nil
		}
	}
	return netip.AddrPort{}, errors.New("a datagram came without its destination")
}

func sockaddr(ip netip.Addr, port uint16) unix.Sockaddr {
	if ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: ip.As16(), Port: int(port)}
}
