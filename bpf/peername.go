// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel -type client peername peername.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// Peername is the programs that tell apps who their clients are, with the notes that they read,
// loaded and not yet attached.
type Peername = peernameObjects

// Client is the note on a socket of the node agent: whom its connection is for.
func Client(a netip.AddrPort) peernameClient {
	var c peernameClient
	wire := a.Addr().As16()
	for i := range c.Ip {
		c.Ip[i] = binary.NativeEndian.Uint32(wire[4*i:])
	}
	c.Port = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, a.Port()))
	return c
}

// LoadPeername loads the programs.
func LoadPeername() (*Peername, error) {
	if err := features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSkStorageGet); errors.Is(err,
		ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("showing apps their clients' addresses needs Linux 5.8, built with CONFIG_CGROUP_BPF: %w", err)
	}
	var objs Peername
	if err := loadPeernameObjects(&objs, nil); err != nil {
		return nil, fmt.Errorf("load what shows apps their clients' addresses (this needs Linux 5.8): %w", explain(err))
	}
	return &objs, nil
}
