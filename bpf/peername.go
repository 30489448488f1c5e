// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Peername is the programs that tell apps who their clients are, with the notes that they read,
// loaded and not yet attached.
type Peername = peernameObjects

// Client returns the note on a socket of the node agent that names the client of its connection.
func Client(a netip.AddrPort) peernameClient {
	return peernameClient{Ip: words(a.Addr()), Port: networkOrder(a.Port())}
}

// LoadPeername loads the programs.
func LoadPeername() (*Peername, error) {
	if err := NeedsPeername.check(features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)); err != nil {
		return nil, err
	}
	var objs Peername
	if err := loadPeernameObjects(&objs, nil); err != nil {
		return nil, fmt.Errorf("load peername programs: %w", explain(err))
	}
	return &objs, nil
}
