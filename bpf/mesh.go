// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Mesh is the programs that make connections of a mesh's proxy to the app known to the steering, with their
// map, loaded and not yet attached.
type Mesh = meshObjects

// MeshProxy is an entry of Mesh.MeshTargets: the user who is a mesh's proxy, and how many of its
// connections could not be made known.
type MeshProxy = meshMeshProxy

// MeshTarget returns the key of an address and port of the app, in the network namespace with that cookie.
func MeshTarget(netns uint64, a netip.AddrPort) meshMeshTarget {
	return meshMeshTarget{Netns: netns, Ip: words(a.Addr()), Port: uint32(networkOrder(a.Port()))}
}

// MeshDialsFrom is the address that a mesh's proxy connects from when it connects to 127.0.0.1.
var MeshDialsFrom = netip.AddrFrom4([4]byte(
	binary.BigEndian.AppendUint32(nil, uint32(meshMeshAddressMESH_DIALS_FROM))))

// LoadMesh loads the programs.
func LoadMesh() (*Mesh, error) {
	if err := NeedsMesh.check(features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)); err != nil {
		return nil, err
	}
	var objs Mesh
	if err := loadMeshObjects(&objs, nil); err != nil {
		return nil, fmt.Errorf("load mesh programs: %w", explain(err))
	}
	return &objs, nil
}
