// SPDX-License-Identifier: Apache-2.0

// Package tc attaches programs to the ingress of network devices: by links (tcx) since Linux 6.6, and by filters
// of the qdisc clsact on any kernel. Everything happens in the network namespace of the calling thread.
//
// Programs go before all others, if those leave room: what ends the chain would hide packets from them.
package tc

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
)

// Loopback is the index of lo in every network namespace.
const Loopback = 1

// Device is a network device.
type Device struct {
	Index int
	Name  string
}

// Devices lists all devices, lo among them.
func Devices() (all []Device, err error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	for _, l := range links {
		all = append(all, Device{Index: l.Attrs().Index, Name: l.Attrs().Name})
	}
	return all, nil
}

// Link attaches the program by tcx. The error is bpf.NeedsTCX on a kernel without.
func Link(device int, p *ebpf.Program) (link.Link, error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: device, Program: p, Attach: ebpf.AttachTCXIngress,
		Anchor: link.Head()})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("%w: %w", bpf.NeedsTCX, err)
	}
	return l, err
}

// Filter is the identity of a filter, by which its owner finds it again.
type Filter struct {
	Name   string
	Handle uint32
}

// Attach makes p the program of the filter at the ingress of a device. If the filter is there already, its
// program changes at once. made reports whether the device had no qdisc for filters before.
func (f Filter) Attach(device int, p *ebpf.Program) (made bool, err error) {
	made, err = ensureQdisc(device)
	if err != nil {
		return false, err
	}
	ours, taken, err := f.find(device)
	if err != nil {
		return made, err
	}
	priority := uint16(1)
	for taken[priority] {
		priority++
	}
	if ours != nil {
		priority = ours.Priority
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: device, Parent: netlink.HANDLE_MIN_INGRESS, Handle: f.Handle,
			Protocol: unix.ETH_P_ALL, Priority: priority,
		},
		Fd: p.FD(), Name: f.Name, DirectAction: true,
	})
	if err != nil {
		err = fmt.Errorf("add filter to device %d: %w", device, err)
		if made {
			err = errors.Join(err, removeQdisc(device))
		}
		return false, err
	}
	return made, nil
}

// Program returns the number of the filter's program at a device, or 0 if the filter is not there.
func (f Filter) Program(device int) (ebpf.ProgramID, error) {
	ours, _, err := f.find(device)
	if ours == nil || err != nil {
		return 0, err
	}
	return ebpf.ProgramID(ours.Id), nil
}

// Detach removes the filter if it has the program of that number, and the qdisc with it if that was made for it
// and has no other filters.
func (f Filter) Detach(device int, id ebpf.ProgramID, made bool) error {
	ours, _, err := f.find(device)
	if err != nil {
		return err
	}
	if ours == nil || ebpf.ProgramID(ours.Id) != id {
		return nil // a younger agent's, or none
	}
	if err := netlink.FilterDel(ours); err != nil && !gone(err) {
		return fmt.Errorf("remove filter from device %d: %w", device, err)
	}
	if !made {
		return nil
	}
	return removeQdisc(device)
}

// find returns the filter at the ingress of a device, or nil, and the priorities that others use there.
func (f Filter) find(device int) (ours *netlink.BpfFilter, taken map[uint16]bool, err error) {
	filters, err := filtersOf(device, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, nil, err
	}
	taken = map[uint16]bool{}
	for _, other := range filters {
		b, ok := other.(*netlink.BpfFilter)
		if ok && b.Handle == f.Handle && b.Name == f.Name {
			ours = b
		} else {
			taken[other.Attrs().Priority] = true
		}
	}
	return ours, taken, nil
}

// Sweep removes the filters at the ingress of all devices of whose names which reports true.
func Sweep(which func(name string) bool) error {
	devices, err := Devices()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range devices {
		filters, err := filtersOf(d.Index, netlink.HANDLE_MIN_INGRESS)
		errs = append(errs, err)
		for _, f := range filters {
			b, ok := f.(*netlink.BpfFilter)
			if !ok || !which(b.Name) {
				continue
			}
			if err := netlink.FilterDel(f); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("remove filter from device %d: %w", d.Index, err))
			}
		}
	}
	return errors.Join(errs...)
}

// filtersOf lists filters. A device without a place for them, or one that is gone, has none.
func filtersOf(device int, parent uint32) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: device}}, parent)
	if gone(err) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of device %d: %w", device, err)
	}
	return filters, nil
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

func clsact(device int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: device, Handle: netlink.MakeHandle(0xffff, 0),
			Parent: netlink.HANDLE_CLSACT},
		QdiscType: "clsact",
	}
}

func ensureQdisc(device int) (made bool, err error) {
	err = netlink.QdiscAdd(clsact(device))
	if errors.Is(err, unix.EEXIST) { // or the older qdisc "ingress", which will do as well
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("add qdisc clsact to device %d: %w", device, err)
	}
	return true, nil
}

func removeQdisc(device int) error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		others, err := filtersOf(device, parent)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return nil
		}
	}
	err := netlink.QdiscDel(clsact(device))
	if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc clsact from device %d: %w", device, err)
	}
	return nil
}
