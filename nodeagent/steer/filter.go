// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// All functions here work in the network namespace of the calling thread.

// What tells our filter from those of others.
const (
	filterName   = "sidestep"
	filterHandle = 0x51de
)

// ourFilter gives our filter at the ingress of a device, or nil, and the priorities that are in use
// there.
func ourFilter(device int) (ours *netlink.BpfFilter, taken map[uint16]bool, err error) {
	filters, err := filtersOf(device, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, nil, err
	}
	taken = map[uint16]bool{}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Handle == filterHandle && b.Name == filterName {
			ours = b
		} else {
			taken[f.Attrs().Priority] = true
		}
	}
	return ours, taken, nil
}

// filtersOf lists filters. A device without a place for them, or one that is gone, has none.
func filtersOf(device int, parent uint32) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: device}}, parent)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the filters of device %d: %w", device, err)
	}
	return filters, nil
}

// addFilter makes p the program of our filter at the ingress of a device. If there is one already,
// it changes its program at once. made says that the device had no qdisc for filters before.
func addFilter(device int, p *ebpf.Program) (made bool, err error) {
	made, err = ensureQdisc(device)
	if err != nil {
		return false, err
	}
	ours, taken, err := ourFilter(device)
	if err != nil {
		return made, err
	}
	// Before all others, if they leave room: what ends the chain would hide packets from us, and we
	// never end it.
	priority := uint16(1)
	for taken[priority] {
		priority++
	}
	if ours != nil {
		priority = ours.Priority
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: device, Parent: netlink.HANDLE_MIN_INGRESS, Handle: filterHandle,
			Protocol: unix.ETH_P_ALL, Priority: priority,
		},
		Fd: p.FD(), Name: filterName, DirectAction: true,
	})
	if err != nil {
		err = fmt.Errorf("add a filter to device %d: %w", device, err)
		if made {
			err = errors.Join(err, removeQdisc(device))
		}
		return false, err
	}
	return made, nil
}

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

// removeFilter removes our filter from the ingress of a device if it has the program of that
// number, and the qdisc with it if it was made for it and nobody else uses it.
func removeFilter(device int, id ebpf.ProgramID, made bool) error {
	ours, _, err := ourFilter(device)
	if err != nil {
		return err
	}
	if ours == nil || ebpf.ProgramID(ours.Id) != id {
		return nil // a younger agent's, or none
	}
	if err := netlink.FilterDel(ours); err != nil && !errors.Is(err, unix.ENOENT) &&
		!errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the filter from device %d: %w", device, err)
	}
	if !made {
		return nil
	}
	return removeQdisc(device)
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
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) &&
		!errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc clsact from device %d: %w", device, err)
	}
	return nil
}

// devices lists the indexes of all devices. lo is among them: a mesh's proxy in the pod dials the
// app there.
func devices() ([]int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	var indexes []int
	for _, l := range links {
		indexes = append(indexes, l.Attrs().Index)
	}
	return indexes, nil
}
