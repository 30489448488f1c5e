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

// hook is where a program can be attached: the socket lookup of a namespace, or the ingress of one
// of its devices.
type hook struct {
	kind   Datapath // SkLookup, TCX or ClsAct
	device int      // 0 for SkLookup
}

// attachment is a program that is attached to a hook.
type attachment interface {
	// gone reports that the hook no longer exists, or that nothing is attached to it.
	gone() bool
	// leadsTo reports whether the hook runs the program with that ID.
	leadsTo(id ebpf.ProgramID) bool
	pin(path string) error
	// detach removes the attachment from the kernel. Pins stay.
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
	_ = h.Unpin() // from an older path; otherwise Pin would take it for pinned already
	return h.Pin(path)
}

func (h linkAttachment) detach() error {
	if err := h.Detach(); err != nil && !h.gone() {
		return err
	}
	return nil
}

// ourFilter identifies the filter of every agent, so that an agent replaces the program of a device
// and never adds a second one.
var ourFilter = tc.Filter{Name: "sidestep", Handle: 0x51de}

// filterAttachment is a TC filter on a device. A filter cannot be pinned, so its program is pinned
// in its place and identifies it.
type filterAttachment struct {
	program *ebpf.Program
	id      ebpf.ProgramID
	device  int
	made    bool // the qdisc was created for the filter
	// visit calls fn in the namespace of the device. It returns false if the namespace is not
	// found.
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

// newFilterAttachment takes ownership of program.
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

// visitor returns a function that visits an open namespace.
func visitor(ns Namespace) func(func() error) (bool, error) {
	return func(fn func() error) (bool, error) { return true, ns.Do(fn) }
}

// searcher returns a function that finds a namespace by its inode number among those of the
// processes below proc, and visits it. A namespace without processes counts as gone: nothing is
// left in it that a filter could affect.
func searcher(proc string, inode uint64) func(func() error) (bool, error) {
	return func(fn func() error) (bool, error) {
		ns, err := netns.Find(proc, inode)
		if err != nil || ns == nil {
			return false, err
		}
		return true, errors.Join(ns.Do(fn), ns.Close())
	}
}
