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

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel -type mesh_target -type mesh_proxy mesh mesh.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// Mesh is the programs that make connections of a mesh's proxy to the app known, and where they
// learn which these are, loaded and not yet attached.
type Mesh = meshObjects

// MeshProxy is an entry of Mesh.MeshTargets: the user who is a mesh's proxy, and how many of its
// connections could not be made known.
type MeshProxy = meshMeshProxy

// MeshTarget is the key of an address and port of the app, in the network namespace with that
// cookie.
func MeshTarget(netns uint64, a netip.AddrPort) meshMeshTarget {
	key := meshMeshTarget{Netns: netns}
	wire := a.Addr().As16()
	for i := range key.Ip {
		key.Ip[i] = binary.NativeEndian.Uint32(wire[4*i:])
	}
	key.Port = uint32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, a.Port())))
	return key
}

// MeshDialsFrom is the address that a mesh's proxy connects from when it connects to 127.0.0.1.
var MeshDialsFrom = netip.AddrFrom4([4]byte{127, 115, 115, 6}) // MESH_DIALS_FROM in mesh.h

// LoadMesh loads the programs.
func LoadMesh() (*Mesh, error) {
	if err := features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie); errors.Is(err,
		ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("telling a mesh's proxy from the rest of its pod needs Linux 5.7, built with CONFIG_CGROUP_BPF: %w", err)
	}
	var objs Mesh
	if err := loadMeshObjects(&objs, nil); err != nil {
		return nil, fmt.Errorf("load what tells a mesh's proxy from the rest of its pod: %w", explain(err))
	}
	return &objs, nil
}
