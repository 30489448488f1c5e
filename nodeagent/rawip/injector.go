// SPDX-License-Identifier: Apache-2.0

package rawip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Injector gives TCP packets back to the pod's kernel that were taken from it, through the pod's loopback
// device. Its methods must not be called concurrently.
type Injector struct {
	ns       Namespace
	fds      map[int]int // by family
	problems map[int]error
}

// NewInjector returns an injector that opens its sockets when it needs them.
func NewInjector(ns Namespace) *Injector {
	return &Injector{ns: ns, fds: map[int]int{}, problems: map[int]error{}}
}

const (
	ip4MinHeader = 20
	ip6Header    = 40
	tcpHeader    = 20
	tcpChecksum  = 16 // offset in the TCP header
)

var errCut = errors.New("the packet's headers are cut off")

// Inject sends a packet of which headers is the length of all headers. It changes the packet's TCP checksum,
// which the network card may not have left in order.
func (i *Injector) Inject(packet []byte, headers int) error {
	family, at, err := tcpOf(packet, headers)
	if err != nil {
		return err
	}
	addresses, to := packet[12:20], unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	if family == unix.AF_INET6 {
		addresses, to = packet[8:40], &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	}
	binary.BigEndian.PutUint16(packet[at+tcpChecksum:], 0)
	binary.BigEndian.PutUint16(packet[at+tcpChecksum:], Checksum(unix.IPPROTO_TCP, packet[at:], addresses))
	fd, err := i.socket(family)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, packet, unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("send packet to pod: %w", err)
	}
	return nil
}

// tcpOf returns the family of the packet, and where its TCP header begins.
func tcpOf(packet []byte, headers int) (family, at int, err error) {
	if headers > len(packet) || headers < ip4MinHeader+tcpHeader {
		return 0, 0, errCut
	}
	if packet[0]>>4 == 4 {
		at := int(packet[0]&0x0f) * 4
		if at < ip4MinHeader || at+tcpHeader > headers {
			return 0, 0, errCut
		}
		return unix.AF_INET, at, nil
	}
	at, err = tcpOf6(packet[:headers])
	return unix.AF_INET6, at, err
}

// tcpOf6 returns where the TCP header begins. Before it may be options, for the nodes on the way or for the
// destination.
func tcpOf6(headers []byte) (int, error) {
	at := ip6Header
	if len(headers) < at {
		return 0, errCut
	}
	for next := headers[6]; next != unix.IPPROTO_TCP; {
		if next != unix.IPPROTO_HOPOPTS && next != unix.IPPROTO_DSTOPTS {
			return 0, errors.New("the packet has extension headers other than options")
		}
		if len(headers) < at+2 {
			return 0, errCut
		}
		next, at = headers[at], at+8*(int(headers[at+1])+1)
	}
	if len(headers) < at+tcpHeader {
		return 0, errCut
	}
	return at, nil
}

func (i *Injector) socket(family int) (int, error) {
	if fd, ok := i.fds[family]; ok {
		return fd, i.problems[family]
	}
	fd, err := Socket(i.ns, family, unix.IPPROTO_RAW)
	if err == nil && family == unix.AF_INET6 {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1); err != nil {
			err = fmt.Errorf("set IPV6_HDRINCL on raw socket: %w", err)
		}
	}
	i.fds[family], i.problems[family] = fd, err
	return fd, err
}

// Close closes the sockets.
func (i *Injector) Close() error {
	var errs []error
	for _, fd := range i.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	clear(i.fds)
	return errors.Join(errs...)
}
