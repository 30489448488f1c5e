// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs that run in the kernel, compiled, and what user space needs in
// order to load them. What is attached where, and for how long, is decided elsewhere.
package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel -type target_key -type target_value -type listener_slot -type outcome steer steer.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel steerTC steertc.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// Steer is the steering program of one pod with its maps, loaded and not yet attached.
type Steer struct {
	*ebpf.Program
	Targets, Listeners, Outcomes *ebpf.Map

	objects io.Closer
}

// Close closes the program and the maps, which live on where the program is attached.
func (s *Steer) Close() error { return s.objects.Close() }

// Outcome says why a connection to a target was, or was not, steered: the index into
// Steer.Outcomes.
type Outcome = steerOutcome

// All outcomes.
const (
	Steered     = steerOutcomeSTEERED
	AgentSilent = steerOutcomeAGENT_SILENT
	NoListener  = steerOutcomeNO_LISTENER
	NotAssigned = steerOutcomeNOT_ASSIGNED
	TimeWait    = steerOutcomeTIME_WAIT

	// Of datagrams.
	DatagramSteered     = steerOutcomeDATAGRAM + Steered
	DatagramAgentSilent = steerOutcomeDATAGRAM + AgentSilent
	DatagramNoListener  = steerOutcomeDATAGRAM + NoListener
	DatagramNotAssigned = steerOutcomeDATAGRAM + NotAssigned
	// DatagramProbed counts those from a loopback address, which were steered as well.
	DatagramProbed = steerOutcomeDATAGRAM + steerOutcomePROBED
)

// The slots in Steer.Listeners of the listeners, and of the sockets that get datagrams.
const (
	Listener4  = steerListenerSlotLISTENER_IP4
	Listener6  = steerListenerSlotLISTENER_IP6
	Datagrams4 = steerListenerSlotDATAGRAMS_IP4
	Datagrams6 = steerListenerSlotDATAGRAMS_IP6
)

// Target is the entry of Steer.Targets for one address and TCP port of the pod.
func Target(a netip.AddrPort) (steerTargetKey, steerTargetValue) {
	return target(a, unix.IPPROTO_TCP, Listener4, Listener6)
}

// DatagramTarget is the entry of Steer.Targets for one address and UDP port of the pod.
func DatagramTarget(a netip.AddrPort) (steerTargetKey, steerTargetValue) {
	return target(a, unix.IPPROTO_UDP, Datagrams4, Datagrams6)
}

func target(a netip.AddrPort, protocol uint16, slot4, slot6 steerListenerSlot) (steerTargetKey,
	steerTargetValue) {
	key := steerTargetKey{Port: a.Port(), Protocol: protocol}
	ip := a.Addr().Unmap()
	wire := ip.As16()
	for i := range key.Ip {
		key.Ip[i] = binary.NativeEndian.Uint32(wire[4*i:])
	}
	if ip.Is4() {
		return key, steerTargetValue{Slot: slot4}
	}
	return key, steerTargetValue{Slot: slot6}
}

// NewHeartbeat makes the map that all programs of an agent look into before they steer anything to
// it.
func NewHeartbeat() (*ebpf.Map, error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(spec.Maps[steerMapHeartbeat])
	if err != nil {
		return nil, fmt.Errorf("create the heartbeat map: %w", explain(err))
	}
	return m, nil
}

// LoadSteer loads a program for the socket lookup of a network namespace, with maps of its own,
// except for the heartbeat.
func LoadSteer(heartbeat *ebpf.Map) (*Steer, error) {
	var o steerObjects
	if err := loadSteerObjects(&o, withHeartbeat(heartbeat)); err != nil {
		return nil, fmt.Errorf("load the steering program: %w", explain(err))
	}
	return &Steer{Program: o.Steer, Targets: o.Targets, Listeners: o.Listeners, Outcomes: o.Outcomes,
		objects: &o}, nil
}

// LoadSteerTC loads the same for the ingress of network devices.
func LoadSteerTC(heartbeat *ebpf.Map) (*Steer, error) {
	var o steerTCObjects
	if err := loadSteerTCObjects(&o, withHeartbeat(heartbeat)); err != nil {
		return nil, fmt.Errorf("load the steering program for TC: %w", explain(err))
	}
	return &Steer{Program: o.SteerTc, Targets: o.Targets, Listeners: o.Listeners, Outcomes: o.Outcomes,
		objects: &o}, nil
}

func withHeartbeat(m *ebpf.Map) *ebpf.CollectionOptions {
	return &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{steerMapHeartbeat: m}}
}

// need is something that a kernel must have.
type need struct {
	probe func() error
	text  string
}

// Supported says whether this kernel can steer at the socket lookup, and if not, what it lacks.
func Supported() error {
	return ask(
		need{func() error { return features.HaveProgramType(ebpf.SkLookup) },
			"steering by sk_lookup needs Linux 5.9 (sk_lookup programs)"},
		need{func() error { return features.HaveProgramHelper(ebpf.SkLookup, asm.FnKtimeGetNs) },
			"steering by sk_lookup needs Linux 5.9 (sk_lookup with a clock)"},
		sockmap,
	)
}

// SupportedTC says whether this kernel can steer at the ingress of devices, and if not, what it
// lacks. How the program is attached there is another question.
func SupportedTC() error {
	return ask(
		need{func() error { return features.HaveProgramType(ebpf.SchedCLS) },
			"steering by TC needs a Linux built with CONFIG_NET_CLS_ACT"},
		need{func() error { return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkAssign) },
			"steering by TC needs Linux 5.8 (bpf_sk_assign, 5.7, and lookups in a sockmap)"},
		sockmap,
	)
}

var sockmap = need{func() error { return features.HaveMapType(ebpf.SockMap) },
	"steering needs a Linux built with CONFIG_BPF_STREAM_PARSER (sockmap)"}

func ask(needs ...need) error {
	for _, n := range needs {
		if err := n.probe(); errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("%s: %w", n.text, err)
		} else if err != nil {
			return fmt.Errorf("ask the kernel for what steering needs: %w", explain(err))
		}
	}
	return nil
}

// explain adds what to do to the kernel's shortest answer.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (the node agent needs CAP_SYS_ADMIN and CAP_NET_ADMIN)", err)
	}
	return err
}
