// SPDX-License-Identifier: Apache-2.0

package bpf

// The compiler's flags are in the file cflags. -idirafter there is for <asm/types.h>, which Debian keeps by
// architecture.
//
//go:generate -command bpf2go env BPF2GO_CC=clang-19 BPF2GO_CFLAGS=@cflags go tool bpf2go -target bpfel
//go:generate bpf2go -type target_key -type target_value -type listener_slot -type outcome steer steer.c
//go:generate bpf2go steerTC steertc.c
//go:generate bpf2go -type automaton -type entry -type event -type event_kind -type phase -type flag headwatch headwatch.c
//go:generate bpf2go -type mesh_target -type mesh_proxy -type mesh_address mesh mesh.c
//go:generate bpf2go -type client peername peername.c
//go:generate bpf2go -type port_key -type way -type tally -type tallies -type note tcpstats tcpstats.c
