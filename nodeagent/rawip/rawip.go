// SPDX-License-Identifier: Apache-2.0

// Package rawip sends packets of the caller's making through raw sockets in a pod's network namespace.
package rawip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Namespace is a pod's network namespace.
type Namespace interface {
	Do(fn func() error) error
}

// Socket opens a raw socket in the namespace. A family is unix.AF_INET or unix.AF_INET6, a protocol one of the
// IPPROTO numbers.
func Socket(ns Namespace, family, protocol int) (fd int, err error) {
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	switch {
	case errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open raw socket in pod: %w (this takes CAP_NET_RAW)", err)
	case err != nil:
		return -1, fmt.Errorf("open raw socket in pod: %w", err)
	}
	return fd, nil
}

// Checksum returns the checksum of a TCP or UDP segment, whose own checksum field must be 0 (RFC 1071, and RFC
// 8200 §8.1 for the pseudo-header). addresses are the source's and the destination's, in any order.
func Checksum(protocol int, segment []byte, addresses ...[]byte) uint16 {
	sum := uint64(protocol) + uint64(len(segment)) + words(segment)
	for _, a := range addresses {
		sum += words(a)
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// words adds up 16-bit words.
func words(b []byte) (sum uint64) {
	for ; len(b) >= 4; b = b[4:] {
		n := binary.BigEndian.Uint32(b)
		sum += uint64(n>>16) + uint64(n&0xffff)
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}
