// SPDX-License-Identifier: Apache-2.0

package datagrams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/rawip"
)

// sender sends datagrams from addresses and ports to which its sockets are not bound, because the
// app has bound them. It writes the UDP header itself. The kernel adds the IP header and fragments.
type sender struct {
	mu     sync.RWMutex
	closed bool
	fd4    int // -1 if there is none
	fd6    int
}

const (
	udpHeader   = 8
	udpChecksum = 6 // offset in the header
)

// openSender opens sockets for the families that are wanted.
func openSender(ns *netns.Namespace, four, six bool) (_ *sender, err error) {
	s := &sender{fd4: -1, fd6: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if four {
		if s.fd4, err = rawSocket(ns, unix.AF_INET, unix.IPPROTO_IP, unix.IP_TRANSPARENT,
			netip.AddrFrom4([4]byte{127, 115, 115, 7})); err != nil {
			return nil, err
		}
	}
	if six {
		if s.fd6, err = rawSocket(ns, unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT,
			netip.IPv6Loopback()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// rawSocket opens a socket that receives nothing. Otherwise the kernel would queue a copy of every
// datagram to the address to which it is bound.
func rawSocket(ns *netns.Namespace, family, level, transparent int, home netip.Addr) (int, error) {
	fd, err := rawip.Socket(ns, family, unix.IPPROTO_UDP)
	if err != nil {
		return -1, err
	}
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &nothing[0]}),
		unix.SetsockoptInt(fd, level, transparent, 1),
		unix.Bind(fd, sockaddr(home, 0)),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("prepare raw socket in pod: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// send sends a datagram. If the kernel has no room for it, it is lost, as with any other sender.
func (s *sender) send(from, to netip.AddrPort, payload []byte) error {
	return s.transmit(from, to, segment(from, to, payload))
}

// brokenSize is more than the kernel sums up before it looks for a socket (CHECKSUM_BREAK, 76
// bytes).
const brokenSize = 128

// sendBroken sends a datagram with a wrong checksum, which no reader ever sees: the kernel looks
// for a socket, and drops the datagram when the socket is read.
func (s *sender) sendBroken(from, to netip.AddrPort) error {
	d := segment(from, to, make([]byte, brokenSize))
	sum := binary.BigEndian.Uint16(d[udpChecksum:])
	if sum++; sum == 0 { // 0 would mean that there is no checksum
		sum++
	}
	binary.BigEndian.PutUint16(d[udpChecksum:], sum)
	return s.transmit(from, to, d)
}

func (s *sender) transmit(from, to netip.AddrPort, d []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	fd, control := s.fd6, []byte(nil)
	if from.Addr().Is4() {
		fd, control = s.fd4, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.Addr().As4()})
	} else {
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.Addr().As16()})
	}
	if s.closed || fd < 0 {
		return fmt.Errorf("send a datagram from %s: %w", from, unix.EBADF)
	}
	if _, err := unix.SendmsgN(fd, d, control, sockaddr(to.Addr(), 0), unix.MSG_DONTWAIT); err != nil {
		return fmt.Errorf("send a datagram of %d bytes from %s to %s: %w", len(d)-udpHeader, from, to, err)
	}
	return nil
}

func (s *sender) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, fd := range []int{s.fd4, s.fd6} {
		if fd >= 0 && !s.closed {
			errs = append(errs, unix.Close(fd))
		}
	}
	s.closed = true
	return errors.Join(errs...)
}

// segment returns a datagram with its UDP header (RFC 768).
func segment(from, to netip.AddrPort, payload []byte) []byte {
	d := make([]byte, 0, udpHeader+len(payload))
	d = binary.BigEndian.AppendUint16(d, from.Port())
	d = binary.BigEndian.AppendUint16(d, to.Port())
	d = binary.BigEndian.AppendUint16(d, uint16(udpHeader+len(payload)))
	d = append(d, 0, 0)
	d = append(d, payload...)
	sum := rawip.Checksum(unix.IPPROTO_UDP, d, from.Addr().AsSlice(), to.Addr().AsSlice())
	if sum == 0 {
		sum = 0xffff // 0 would mean that there is no checksum
	}
	binary.BigEndian.PutUint16(d[udpChecksum:], sum)
	return d
}
