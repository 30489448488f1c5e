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

// Headwatch is the program that watches the heads of requests, with its maps, loaded and not yet attached.
type Headwatch = headwatchObjects

// What its maps hold.
type (
	// FlowKey is the key of a watched connection.
	FlowKey = headwatchFlowKey
	// Flow is the state of a watched connection.
	Flow = headwatchFlow
	// Automaton finds the heads that the rules name, byte by byte.
	Automaton = headwatchAutomaton
	// Event is what the program tells user space about a connection.
	Event = headwatchEvent
)

// What the entries of an Automaton are made of: the next state, and what was seen.
const (
	AutomatonStates = int(headwatchEntrySTATE_MASK) + 1
	EntryFound      = uint16(headwatchEntryFOUND)
	EntryEnded      = uint16(headwatchEntryENDED)
	StateStart      = uint16(headwatchEntrySTART)
	StateMiddle     = uint16(headwatchEntryMIDDLE)
)

// Flow.Phase, Flow.Flags and Event.Kind.
const (
	PhaseUnknown = uint8(headwatchPhaseUNKNOWN)
	PhaseHead    = uint8(headwatchPhaseHEAD)
	PhaseRest    = uint8(headwatchPhaseREST)
	PhaseQueued  = uint8(headwatchPhaseQUEUED)
	FlagFound    = uint8(headwatchFlagFLAG_FOUND)
	FlagGap      = uint8(headwatchFlagFLAG_GAP)
	EventCopied  = uint32(headwatchEventKindCOPIED)
	EventWaiting = uint32(headwatchEventKindWAITING)
)

// HeadwatchOutcome is the index into Headwatch.Outcomes.
type HeadwatchOutcome = headwatchOutcome

// All outcomes: packets that were queued, that were dropped when they were repeated meanwhile, that passed
// since there was no verdict in time, and that passed since there was no room to tell the agent.
const (
	PacketQueued  = headwatchOutcomePACKET_QUEUED
	RepeatDropped = headwatchOutcomeREPEAT_DROPPED
	TimedOut      = headwatchOutcomeTIMED_OUT
	NoRoom        = headwatchOutcomeNO_ROOM
)

// NewFlowKey returns the key of a connection.
func NewFlowKey(remote, local netip.AddrPort) FlowKey {
	return FlowKey{Remote: words(remote.Addr()), RemotePort: remote.Port(),
		Local: words(local.Addr()), LocalPort: local.Port()}
}

// Ends returns the addresses of a connection, IPv4-mapped ones unmapped.
func (k FlowKey) Ends() (remote, local netip.AddrPort) {
	return netip.AddrPortFrom(address(k.Remote), k.RemotePort), netip.AddrPortFrom(address(k.Local), k.LocalPort)
}

// LoadHeadwatch loads a program for one pod, with maps of its own. No port is watched yet. Packets are queued
// for timeout at least, unless the agent says otherwise or is silent.
func LoadHeadwatch(timeout time.Duration) (*Headwatch, error) {
	if err := NeedsHeadwatch.check(features.HaveMapType(ebpf.RingBuf)); err != nil {
		return nil, err
	}
	spec, err := loadHeadwatch()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["timeout_ns"].Set(uint64(timeout)); err != nil {
		return nil, err
	}
	var objs Headwatch
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load headwatch program: %w", explain(err))
	}
	return &objs, nil
}

// NewAutomaton makes the inner map that holds an automaton.
func NewAutomaton(a *Automaton) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(a)), MaxEntries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("create map for automaton: %w", explain(err))
	}
	if err := m.Put(uint32(0), a); err != nil {
		return nil, errors.Join(fmt.Errorf("write automaton: %w", err), m.Close())
	}
	return m, nil
}
