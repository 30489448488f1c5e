// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v2" -target bpfel -type entry -type state -type phase -type flag -type event_kind -type outcome -type flow_key -type flow -type automaton -type event takeover takeover.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// Takeover is the program that watches connections older than an intercept, with its maps, loaded
// and not yet attached.
type Takeover = takeoverObjects

// What its maps hold.
type (
	FlowKey   = takeoverFlowKey
	Flow      = takeoverFlow
	Automaton = takeoverAutomaton
	Event     = takeoverEvent
)

// What the entries of an Automaton are made of: the next state, and what was seen.
const (
	AutomatonStates = int(takeoverEntrySTATE_MASK) + 1
	EntryFound      = uint16(takeoverEntryFOUND)
	EntryEnded      = uint16(takeoverEntryENDED)
	StateStart      = uint16(takeoverStateSTART)
	StateMiddle     = uint16(takeoverStateMIDDLE)
)

// Flow.Phase, Flow.Flags and Event.Kind.
const (
	PhaseUnknown = uint8(takeoverPhaseUNKNOWN)
	PhaseHead    = uint8(takeoverPhaseHEAD)
	PhaseRest    = uint8(takeoverPhaseREST)
	PhaseHeld    = uint8(takeoverPhaseHELD)
	FlagFound    = uint8(takeoverFlagFLAG_FOUND)
	FlagGap      = uint8(takeoverFlagFLAG_GAP)
	EventCopied  = uint32(takeoverEventKindCOPIED)
	EventWaits   = uint32(takeoverEventKindWAITS)
)

// TakeoverOutcome is the index into Takeover.Counts.
type TakeoverOutcome = takeoverOutcome

// All outcomes: packets that were held back, that were dropped again when they were repeated, that
// passed since the agent had not decided in time, and that passed since there was no room to tell
// the agent.
const (
	HeldBack     = takeoverOutcomeHELD_BACK
	DroppedAgain = takeoverOutcomeDROPPED_AGAIN
	GaveUp       = takeoverOutcomeGAVE_UP
	Untold       = takeoverOutcomeUNTOLD
)

// NewFlowKey is the key of a connection.
func NewFlowKey(remote, local netip.AddrPort) FlowKey {
	k := FlowKey{RemotePort: remote.Port(), LocalPort: local.Port()}
	r, l := remote.Addr().As16(), local.Addr().As16()
	for i := range k.Remote {
		k.Remote[i] = binary.NativeEndian.Uint32(r[4*i:])
		k.Local[i] = binary.NativeEndian.Uint32(l[4*i:])
	}
	return k
}

// TakeoverHold is for how long a packet is to be held back at least, unless the agent says
// otherwise or is silent.
const TakeoverHold = 300 * time.Millisecond

// LoadTakeover loads a program for one port, with maps of its own. No rules are in force yet.
func LoadTakeover(port uint16, hold time.Duration) (*Takeover, error) {
	spec, err := loadTakeover()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["port"].Set(port); err != nil {
		return nil, err
	}
	if err := spec.Variables["hold_ns"].Set(uint64(hold)); err != nil {
		return nil, err
	}
	var objs Takeover
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load the program that watches open connections: %w", explain(err))
	}
	return &objs, nil
}

// NewAutomaton makes the inner map that holds an automaton.
func NewAutomaton(a *Automaton) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(a)), MaxEntries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("create the map for an automaton: %w", explain(err))
	}
	if err := m.Put(uint32(0), a); err != nil {
		return nil, errors.Join(fmt.Errorf("write an automaton: %w", err), m.Close())
	}
	return m, nil
}

// TakeoverSupported says whether this kernel can watch open connections, and if not, what it lacks.
func TakeoverSupported() error {
	if err := features.HaveMapType(ebpf.RingBuf); errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("watching open connections needs Linux 5.8 (ring buffer): %w", err)
	} else if err != nil {
		return fmt.Errorf("ask the kernel for what watching open connections needs: %w", explain(err))
	}
	return nil
}
