// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/tc"
)

// hook is a place where a program can be attached: the socket lookup of a namespace, or the ingress
// of one of its devices.
type hook struct {
	kind   Datapath // SkLookup, TCX or ClsAct
	device int      // 0 for SkLookup
}

// hold is what somebody has of an attached program.
type hold interface {
	// gone says that the hook does not exist any longer, or that this is no hold of one.
	gone() bool
	// leadsTo says whether the hook runs the program of that number.
	leadsTo(id ebpf.ProgramID) bool
	pin(path string) error
	// detach ends it in the kernel. What is pinned stays.
	detach() error
	Close() error
}

// linkHold is a link to the socket lookup or, by tcx, to a device.
type linkHold struct{ link.Link }

func (h linkHold) info() (id ebpf.ProgramID, gone bool) {
	info, err := h.Info()
	switch {
	case err != nil:
		return 0, false
	case info.NetNs() != nil:
		gone = info.NetNs().NetnsInode == 0
	case info.TCX() != nil:
		gone = info.TCX().Ifindex == 0
	default:
		gone = true
	}
	return info.Program, gone
}

func (h linkHold) gone() bool {
	_, gone := h.info()
	return gone
}

func (h linkHold) leadsTo(id ebpf.ProgramID) bool {
	has, gone := h.info()
	return has == id && !gone
}

func (h linkHold) pin(path string) error {
	_ = h.Unpin() // from where it is no longer; else it would be taken for pinned
	return h.Pin(path)
}

func (h linkHold) detach() error {
	if err := h.Detach(); err != nil && !h.gone() {
		return err
	}
	return nil
}

// ourFilter is the filter of all agents: what steers a device is exchanged, never added to.
var ourFilter = tc.Filter{Name: "sidestep", Handle: 0x51de}

// filterHold is a filter of a device. What is pinned in its place is its program, by which the
// filter is known again.
type filterHold struct {
	program *ebpf.Program
	id      ebpf.ProgramID
	device  int
	made    bool // the qdisc was made for it
	// visit calls fn in the namespace of the device, and is false if that is not found.
	visit func(fn func() error) (bool, error)
}

func (h *filterHold) gone() bool {
	found, err := h.visit(func() error { return nil })
	return err == nil && !found
}

func (h *filterHold) leadsTo(id ebpf.ProgramID) (leads bool) {
	_, err := h.visit(func() error {
		has, err := ourFilter.Program(h.device)
		leads = has == id
		return err
	})
	return leads && err == nil
}

func (h *filterHold) pin(path string) error {
	_ = h.program.Unpin()
	return h.program.Pin(path)
}

func (h *filterHold) detach() error {
	_, err := h.visit(func() error { return ourFilter.Detach(h.device, h.id, h.made) })
	return err
}

func (h *filterHold) Close() error { return h.program.Close() }

// newFilterHold takes a program over.
func newFilterHold(program *ebpf.Program, p pin, visit func(func() error) (bool, error)) (*filterHold, error) {
	id, err := idOf(program)
	if err != nil {
		return nil, err
	}
	return &filterHold{program: program, id: id, device: p.device, made: p.made, visit: visit}, nil
}

func idOf(program *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := program.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect the steering program: %w", err)
	}
	id, _ := info.ID() // known since Linux 4.13
	return id, nil
}

// visitor visits a namespace that is at hand.
func visitor(ns Namespace) func(func() error) (bool, error) {
	return func(fn func() error) (bool, error) { return true, ns.Do(fn) }
}

// searcher visits a namespace that is to be found by its number among those of the processes below
// proc. One without processes is as good as gone: nobody is left in it whom a filter could concern.
func searcher(proc string, inode uint64) func(func() error) (bool, error) {
	return func(fn func() error) (bool, error) {
		ns, err := netns.Find(proc, inode)
		if err != nil || ns == nil {
			return false, err
		}
		return true, errors.Join(ns.Do(fn), ns.Close())
	}
}
