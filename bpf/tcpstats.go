// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// TCPStats is the program that counts the connections to intercepted ports, with its maps, loaded
// and not yet attached.
type TCPStats = tcpstatsObjects

// Tally is what TCPStats has counted on one CPU for the connections that one way has brought to one port.
type (
	Tally = tcpstatsTally
	// Tallies are those of all ways to one port.
	Tallies = tcpstatsTallies
)

// Way is the index into Tallies.ByWay: who accepted a connection, and from whom.
type Way = tcpstatsWay

// All ways.
const (
	WaySteered = tcpstatsWayWAY_STEERED
	WayDirect  = tcpstatsWayWAY_DIRECT
	WayLocal   = tcpstatsWayWAY_LOCAL
)

// ListenerNote is the note on a listener of the node agent. The connections that it accepts inherit it.
var ListenerNote = tcpstatsNote{Way: WaySteered}

// Port returns the key of an address and port in TCPStats.Ports. netns is the cookie of the network namespace,
// or 0 unless NetnsInSockOps.
func Port(netns uint64, a netip.AddrPort) tcpstatsPortKey {
	return tcpstatsPortKey{Netns: netns, Ip: words(a.Addr()), Port: uint32(a.Port())}
}

// LoadTCPStats loads the program.
func LoadTCPStats() (*TCPStats, error) {
	if err := NeedsTCPStats.check(features.HaveProgramHelper(ebpf.SockOps, asm.FnSkStorageGet)); err != nil {
		return nil, err
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
		return nil, fmt.Errorf("load tcpstats program: %w", explain(err))
	}
	return &objs, nil
}

// NetnsInSockOps reports whether sockops programs can tell network namespaces apart, as they can since Linux
// 5.15.
func NetnsInSockOps() bool {
	return features.HaveProgramHelper(ebpf.SockOps, asm.FnGetNetnsCookie) == nil
}
