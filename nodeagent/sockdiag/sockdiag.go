// SPDX-License-Identifier: Apache-2.0

// Package sockdiag lists the TCP connections of a network namespace, and destroys single ones, over
// sock_diag(7) netlink sockets. It works in the network namespace of the calling thread.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
)

// From linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDestroy    = 21
	requestSize    = 56
	messageSize    = 72
	idSize         = 48
	userAt         = 64 // in struct inet_diag_msg
	diagInfo       = 2
	diagSockopt    = 22
	stEstablished  = 1
	stListen       = 10
	lastDataSentAt = 44 // in struct tcp_info
	lastDataRecvAt = 52
	bitMcLoop      = 1 << 4 // in the first byte of struct inet_diag_sockopt
	bitMcAll       = 1 << 6
)

// ErrCannotDestroy means that the kernel lacks SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY).
var ErrCannotDestroy error = bpf.NeedsDestroy

// Socket is one established connection.
type Socket struct {
	Local, Remote netip.AddrPort // IPv4-mapped addresses unmapped
	// Unread and Unsent are the bytes in its queues.
	Unread, Unsent uint32
	// Quiet is for how long the connection has neither received nor sent data.
	Quiet time.Duration
	// User is the UID of its owner.
	User uint32
	// Device is the index of the interface to which it is bound, or 0.
	Device uint32
	// Marked reports whether it was accepted from a listener with Mark.
	Marked bool

	family uint8
	id     [idSize]byte // as the kernel sent it, with the cookie
}

// Cookie identifies the socket until the machine reboots.
func (s *Socket) Cookie() uint64 { return binary.NativeEndian.Uint64(s.id[40:]) }

// Mark marks a listener, so that List recognizes the connections that it accepts. It sets multicast
// options: TCP ignores them, and accepted sockets inherit them.
func Mark(fd int) error {
	for _, option := range []int{unix.IP_MULTICAST_LOOP, unix.IP_MULTICAST_ALL} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, option, 0); err != nil {
			return fmt.Errorf("mark a listener as one of the node agent: %w", err)
		}
	}
	return nil
}

// List returns the established connections of a local port, including those to loopback addresses.
func List(port uint16) ([]Socket, error) {
	return list(func(r []byte) { binary.BigEndian.PutUint16(r[8:], port) },
		func(s *Socket) bool { return s.Local.Port() == port })
}

// ListTo returns the established connections to a remote port.
func ListTo(port uint16) ([]Socket, error) {
	return list(func(r []byte) { binary.BigEndian.PutUint16(r[10:], port) },
		func(s *Socket) bool { return s.Remote.Port() == port })
}

// list returns the sockets that match both the request and the condition.
func list(ask func(request []byte), fits func(*Socket) bool) ([]Socket, error) {
	var all []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r := newRequest(family)
		r[2] = 1 << (diagInfo - 1)
		binary.NativeEndian.PutUint32(r[4:], 1<<stEstablished)
		ask(r)
		req.AddRawData(r)
		messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		// The next list shows what changes meanwhile.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		for _, m := range messages {
			if s, ok := parse(m); ok && fits(&s) {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// ErrNotFound means that there is no such connection, or no longer.
var ErrNotFound = errors.New("no such connection")

// Find returns the established connection between two addresses.
func Find(remote, local netip.AddrPort) (Socket, error) {
	family := uint8(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET // which also finds the IPv6 socket of an IPv4 connection
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	r := newRequest(family)
	r[2] = 1 << (diagInfo - 1)
	binary.NativeEndian.PutUint32(r[4:], 1<<stEstablished)
	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	anyCookie(id)
	req.AddRawData(r)
	messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return Socket{}, fmt.Errorf("find connection from %s to %s: %w", remote, local, err)
	}
	for _, m := range messages {
		if s, ok := parse(m); ok && s.Local == local && s.Remote == remote {
			return s, nil
		}
	}
	return Socket{}, fmt.Errorf("find connection from %s to %s: %w", remote, local, ErrNotFound)
}

// anyCookie makes an ID match a socket with any cookie.
func anyCookie(id []byte) {
	for i := range 8 {
		id[40+i] = 0xff // INET_DIAG_NOCOOKIE
	}
}

// Listeners returns the UIDs of the users that listen on a port.
func Listeners(port uint16) ([]uint32, error) {
	var users []uint32
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r := newRequest(family)
		binary.NativeEndian.PutUint32(r[4:], 1<<stListen)
		binary.BigEndian.PutUint16(r[8:], port)
		req.AddRawData(r)
		messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list who listens on port %d: %w", port, err)
		}
		for _, m := range messages {
			if len(m) >= messageSize && m[1] == stListen && binary.BigEndian.Uint16(m[4:]) == port {
				users = append(users, binary.NativeEndian.Uint32(m[userAt:]))
			}
		}
	}
	return users, nil
}

// Destroy destroys the connection: its peer receives a reset, its owner ECONNABORTED. It succeeds
// if the connection has ended already.
func Destroy(s *Socket) error {
	err := destroy(s.family, s.id[:])
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the connection from %s to %s: %w", s.Remote, s.Local, err)
	}
	return nil
}

// CanDestroy returns nil if Destroy works, or why it does not. It tries it on a listener of its
// own, because the kernel checks permissions only once it has found a socket.
func CanDestroy() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("open a socket to try how sockets are ended: %w", err)
	}
	defer unix.Close(fd)
	home := [4]byte{127, 0, 0, 1}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: home}); err != nil {
		return fmt.Errorf("bind a socket to try how sockets are ended: %w", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		return fmt.Errorf("listen to try how sockets are ended: %w", err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("find out which port to try how sockets are ended on: %w", err)
	}
	var id [idSize]byte
	binary.BigEndian.PutUint16(id[0:], uint16(at.(*unix.SockaddrInet4).Port))
	copy(id[4:], home[:])
	anyCookie(id[:])
	return destroy(unix.AF_INET, id[:])
}

func destroy(family uint8, id []byte) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	r := newRequest(family)
	binary.NativeEndian.PutUint32(r[4:], 1<<stEstablished)
	copy(r[8:], id)
	req.AddRawData(r)
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrCannotDestroy, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (this takes CAP_NET_ADMIN)", err)
	}
	return err
}

// newRequest returns a struct inet_diag_req_v2: family, protocol, extensions, padding, states, id.
func newRequest(family uint8) []byte {
	r := make([]byte, requestSize)
	r[0], r[1] = family, unix.IPPROTO_TCP
	return r
}

// parse parses a struct inet_diag_msg (family, state, timer, retransmissions, id, expiry, queues,
// user, inode) and its attributes.
func parse(m []byte) (Socket, bool) {
	if len(m) < messageSize || m[1] != stEstablished {
		return Socket{}, false
	}
	s := Socket{family: m[0]}
	copy(s.id[:], m[4:])
	s.Local = address(s.family, s.id[4:20], s.id[0:2])
	s.Remote = address(s.family, s.id[20:36], s.id[2:4])
	s.Device = binary.NativeEndian.Uint32(s.id[36:])
	s.Unread = binary.NativeEndian.Uint32(m[56:])
	s.Unsent = binary.NativeEndian.Uint32(m[60:])
	s.User = binary.NativeEndian.Uint32(m[userAt:])
	attributes, err := nl.ParseRouteAttr(m[messageSize:])
	if err != nil {
		return Socket{}, false
	}
	for _, a := range attributes {
		switch {
		case a.Attr.Type == diagInfo && len(a.Value) >= lastDataRecvAt+4:
			last := min(binary.NativeEndian.Uint32(a.Value[lastDataSentAt:]),
				binary.NativeEndian.Uint32(a.Value[lastDataRecvAt:]))
			s.Quiet = time.Duration(last) * time.Millisecond
		case a.Attr.Type == diagSockopt && len(a.Value) >= 2:
			s.Marked = a.Value[0]&(bitMcLoop|bitMcAll) == 0
		}
	}
	return s, true
}

func address(family uint8, ip, port []byte) netip.AddrPort {
	var a netip.Addr
	if family == unix.AF_INET {
		a, _ = netip.AddrFromSlice(ip[:4])
	} else {
		a, _ = netip.AddrFromSlice(ip)
	}
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}
