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

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel -type port_key -type way -type tally -type tallies -type note tcpstats tcpstats.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// TCPStats is the program that counts the connections to intercepted ports, with its maps, loaded
// and not yet attached.
type TCPStats = tcpstatsObjects

// Tally is what TCPStats has counted on one CPU for the connections that one way has brought to one
// port; Tallies is that of all ways.
type (
	Tally   = tcpstatsTally
	Tallies = tcpstatsTallies
)

// Way says who accepted a connection for whom: the index into Tallies.ByWay.
type Way = tcpstatsWay

// All ways.
const (
	WaySteered = tcpstatsWayWAY_STEERED
	WayDirect  = tcpstatsWayWAY_DIRECT
	WayLocal   = tcpstatsWayWAY_LOCAL
)

// ListenerNote is the note on a listener of the node agent, by which the connections that it
// accepts are known.
var ListenerNote = tcpstatsNote{Way: WaySteered}

// Port is the key of an address and port in TCPStats.Ports. netns is the cookie of the network
// namespace, or 0 if NetnsInSockOps says so.
func Port(netns uint64, a netip.AddrPort) tcpstatsPortKey {
	key := tcpstatsPortKey{Netns: netns, Port: uint32(a.Port())}
	wire := a.Addr().As16()
	for i := range key.Ip {
		key.Ip[i] = binary.NativeEndian.Uint32(wire[4*i:])
	}
	return key
}

// LoadTCPStats loads the program.
func LoadTCPStats() (*TCPStats, error) {
	if err := features.HaveProgramHelper(ebpf.SockOps, asm.FnSkStorageGet); errors.Is(err,
		ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("counting connections needs Linux 5.4, built with CONFIG_CGROUP_BPF: %w", err)
	}
	spec, err := loadTcpstats()
	if err != nil {
		return nil, err
	}
	if NetnsInSockOps() {
		if err := spec.Variables["knows_netns"].Set(uint8(1)); err != nil {
			return nil, err
		}
	}
	var objs TCPStats
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load what counts connections: %w", explain(err))
	}
	return &objs, nil
}

// NetnsInSockOps says whether programs at sockets' events can tell network namespaces apart, as
// they can from Linux 5.15 on.
func NetnsInSockOps() bool {
	return features.HaveProgramHelper(ebpf.SockOps, asm.FnGetNetnsCookie) == nil
}
