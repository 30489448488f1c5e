// SPDX-License-Identifier: Apache-2.0

// Package bpf has the programs that run in the kernel, compiled, and what user space needs in order to load
// them: types of keys and values, constants, and what the kernel must have. What is attached where, and for how
// long, is decided elsewhere.
package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Steer is the steering program of one pod with its maps, loaded and not yet attached.
type Steer struct {
	*ebpf.Program
	Targets, Listeners, Outcomes *ebpf.Map

	objects io.Closer
}

// Close closes the program and the maps, which live on where the program is attached.
func (s *Steer) Close() error { return s.objects.Close() }

// Outcome is why a connection to a target was, or was not, steered: the index into Steer.Outcomes.
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
	// DatagramProbed is for those from a loopback address, which were steered as well.
	DatagramProbed = steerOutcomeDATAGRAM + steerOutcomePROBED
)

// The slots in Steer.Listeners of the listeners, and of the sockets that get datagrams.
const (
	Listener4  = steerListenerSlotLISTENER_IP4
	Listener6  = steerListenerSlotLISTENER_IP6
	Datagrams4 = steerListenerSlotDATAGRAMS_IP4
	Datagrams6 = steerListenerSlotDATAGRAMS_IP6
)

// Target returns the entry of Steer.Targets for one address and TCP port of the pod.
func Target(a netip.AddrPort) (steerTargetKey, steerTargetValue) {
	return target(a, unix.IPPROTO_TCP, Listener4, Listener6)
}

// DatagramTarget returns the entry of Steer.Targets for one address and UDP port of the pod.
func DatagramTarget(a netip.AddrPort) (steerTargetKey, steerTargetValue) {
	return target(a, unix.IPPROTO_UDP, Datagrams4, Datagrams6)
}

func target(a netip.AddrPort, protocol uint16, slot4, slot6 steerListenerSlot) (steerTargetKey,
	steerTargetValue) {
	key := steerTargetKey{Ip: words(a.Addr()), Port: a.Port(), Protocol: protocol}
	if a.Addr().Unmap().Is4() {
		return key, steerTargetValue{Slot: slot4}
	}
	return key, steerTargetValue{Slot: slot6}
}

// NewHeartbeat makes the heartbeat map that all steering programs of an agent share.
func NewHeartbeat() (*ebpf.Map, error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(spec.Maps[steerMapHeartbeat])
	if err != nil {
		return nil, fmt.Errorf("create heartbeat map: %w", explain(err))
	}
	return m, nil
}

// LoadSteer loads a program for the socket lookup of a network namespace, with maps of its own except for the
// heartbeat.
func LoadSteer(heartbeat *ebpf.Map) (*Steer, error) {
	var o steerObjects
	if err := loadSteerObjects(&o, withHeartbeat(heartbeat)); err != nil {
		return nil, fmt.Errorf("load steering program: %w", explain(err))
	}
	return &Steer{Program: o.Steer, Targets: o.Targets, Listeners: o.Listeners, Outcomes: o.Outcomes,
		objects: &o}, nil
}

// LoadSteerTC loads the same for the ingress of network devices.
func LoadSteerTC(heartbeat *ebpf.Map) (*Steer, error) {
	var o steerTCObjects
	if err := loadSteerTCObjects(&o, withHeartbeat(heartbeat)); err != nil {
		return nil, fmt.Errorf("load steering program for TC: %w", explain(err))
	}
	return &Steer{Program: o.SteerTc, Targets: o.Targets, Listeners: o.Listeners, Outcomes: o.Outcomes,
		objects: &o}, nil
}

func withHeartbeat(m *ebpf.Map) *ebpf.CollectionOptions {
	return &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{steerMapHeartbeat: m}}
}

// CanSteer returns an error, a Requirement if it lacks something, unless this kernel can steer by sk_lookup.
func CanSteer() error {
	return NeedsSkLookup.check(cmp.Or(
		features.HaveProgramType(ebpf.SkLookup),
		features.HaveProgramHelper(ebpf.SkLookup, asm.FnKtimeGetNs),
		features.HaveMapType(ebpf.SockMap),
	))
}

// CanSteerTC does the same for steering by TC. How the program is attached there is another question.
func CanSteerTC() error {
	return NeedsTC.check(cmp.Or(
		features.HaveProgramType(ebpf.SchedCLS),
		features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkAssign),
		features.HaveMapType(ebpf.SockMap),
	))
}

// explain adds the capabilities that are missing to EPERM.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (the node agent needs CAP_SYS_ADMIN and CAP_NET_ADMIN)", err)
	}
	return err
}
