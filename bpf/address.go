// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// words returns the address as keys and values of maps have it: as IPv6, in network byte order.
func words(ip netip.Addr) (all [4]uint32) {
	wire := ip.As16()
	for i := range all {
		all[i] = binary.NativeEndian.Uint32(wire[4*i:])
	}
	return all
}

// address is the inverse of words, with IPv4-mapped addresses unmapped.
func address(words [4]uint32) netip.Addr {
	var wire [16]byte
	for i, word := range words {
		binary.NativeEndian.PutUint32(wire[4*i:], word)
	}
	return netip.AddrFrom16(wire).Unmap()
}

// networkOrder returns the port as a number that is in network byte order in memory.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}
