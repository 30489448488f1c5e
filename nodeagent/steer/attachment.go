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

// attachment is a program that is attached to a hook.
type attachment interface {
	// gone reports that the hook does not exist any longer, or that this is no attachment to one.
	gone() bool
	// leadsTo reports whether the hook runs the program of that number.
	leadsTo(id ebpf.ProgramID) bool
	pin(path string) error
	// detach ends it in the kernel. What is pinned stays.
	detach() error
	Close() error
}

// linkAttachment is a link to the socket lookup or, by tcx, to a device.
type linkAttachment struct{ link.Link }

func (h linkAttachment) info() (id ebpf.ProgramID, gone bool) {
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

func (h linkAttachment) gone() bool {
	_, gone := h.info()
	return gone
}

func (h linkAttachment) leadsTo(id ebpf.ProgramID) bool {
	has, gone := h.info()
	return has == id && !gone
}

func (h linkAttachment) pin(path string) error {
	_ = h.Unpin() // from where it is no longer; else it would be taken for pinned
	return h.Pin(path)
}

func (h linkAttachment) detach() error {
	if err := h.Detach(); err != nil && !h.gone() {
		return err
	}
	return nil
}

// ourFilter is the filter of all agents: what steers a device is exchanged, never added to.
var ourFilter = tc.Filter{Name: "sidestep", Handle: 0x51de}

// filterAttachment is a filter of a device. What is pinned in its place is its program, by which the
// filter is known again.
type filterAttachment struct {
	program *ebpf.Program
	id      ebpf.ProgramID
	device  int
	made    bool // the qdisc was made for it
	// visit calls fn in the namespace of the device, and is false if that is not found.
	visit func(fn func() error) (bool, error)
}

func (h *filterAttachment) gone() bool {
	found, err := h.visit(func() error { return nil })
	return err == nil && !found
}

func (h *filterAttachment) leadsTo(id ebpf.ProgramID) (leads bool) {
	_, err := h.visit(func() error {
		has, err := ourFilter.Program(h.device)
		leads = has == id
		return err
	})
	return leads && err == nil
}

func (h *filterAttachment) pin(path string) error {
	_ = h.program.Unpin()
	return h.program.Pin(path)
}

func (h *filterAttachment) detach() error {
	_, err := h.visit(func() error { return ourFilter.Detach(h.device, h.id, h.made) })
	return err
}

func (h *filterAttachment) Close() error { return h.program.Close() }

// newFilterAttachment takes a program over.
func newFilterAttachment(program *ebpf.Program, p pin, visit func(func() error) (bool, error)) (*filterAttachment, error) {
	id, err := idOf(program)
	if err != nil {
		return nil, err
	}
	return &filterAttachment{program: program, id: id, device: p.device, made: p.made, visit: visit}, nil
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
