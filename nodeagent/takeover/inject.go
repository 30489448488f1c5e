// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// injector gives packets that were held back to the app's kernel, through the loopback device of
// the pod. Without it they would arrive when their sender repeats them, a fifth of a second later.
type injector struct {
	ns       Namespace
	fds      map[int]int // by family
	problems map[int]error
}

func newInjector(ns Namespace) *injector {
	return &injector{ns: ns, fds: map[int]int{}, problems: map[int]error{}}
}

const (
	ip4MinHeader = 20
	ip6Header    = 40
	tcpHeader    = 20
	tcpChecksum  = 16 // offset in the TCP header
)

// inject sends the packet, whose payload begins at an offset. It changes the packet's checksum,
// which the network card may not have left in order.
func (i *injector) inject(packet []byte, payload int) error {
	if len(packet) < ip4MinHeader+tcpHeader || payload > len(packet) {
		return errors.New("the packet is cut off")
	}
	if packet[0]>>4 == 4 {
		at := int(packet[0]&0x0f) * 4
		if at < ip4MinHeader || at+tcpHeader > payload {
			return errors.New("the packet's headers are cut off")
		}
		checksum(packet[at:], packet[12:20])
		return i.send(unix.AF_INET, packet, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	}
	at, err := tcpOf6(packet[:payload])
	if err != nil {
		return err
	}
	checksum(packet[at:], packet[8:40])
	return i.send(unix.AF_INET6, packet, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])})
}

// tcpOf6 is where the TCP header begins. Before it may be options, for the nodes on the way or for
// the destination.
func tcpOf6(headers []byte) (int, error) {
	at := ip6Header
	if len(headers) < at {
		return 0, errors.New("the packet's headers are cut off")
	}
	for next := headers[6]; next != unix.IPPROTO_TCP; {
		if next != unix.IPPROTO_HOPOPTS && next != unix.IPPROTO_DSTOPTS {
			return 0, errors.New("the packet has extension headers other than options")
		}
		if len(headers) < at+2 {
			return 0, errors.New("the packet's headers are cut off")
		}
		next, at = headers[at], at+8*(int(headers[at+1])+1)
	}
	if len(headers) < at+tcpHeader {
		return 0, errors.New("the packet's headers are cut off")
	}
	return at, nil
}

func (i *injector) send(family int, packet []byte, to unix.Sockaddr) error {
	fd, err := i.socket(family)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, packet, unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("give a packet back to the pod: %w", err)
	}
	return nil
}

func (i *injector) socket(family int) (int, error) {
	if fd, ok := i.fds[family]; ok {
		return fd, i.problems[family]
	}
	fd := -1
	err := i.ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	switch {
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("open a raw socket in the pod: %w (this takes CAP_NET_RAW)", err)
	case err != nil:
		err = fmt.Errorf("open a raw socket in the pod: %w", err)
	case family == unix.AF_INET6:
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1); err != nil {
			err = fmt.Errorf("send whole IPv6 packets: %w", err)
		}
	}
	i.fds[family], i.problems[family] = fd, err
	return fd, err
}

func (i *injector) close() {
	for _, fd := range i.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// checksum sets the checksum of a TCP segment (RFC 9293 §3.1). addresses are the source's and the
// destination's.
func checksum(segment, addresses []byte) {
	segment[tcpChecksum], segment[tcpChecksum+1] = 0, 0
	sum := uint64(unix.IPPROTO_TCP) + uint64(len(segment))
	for _, part := range [][]byte{addresses, segment} {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint64(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint64(part[0]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(segment[tcpChecksum:], ^uint16(sum))
}
