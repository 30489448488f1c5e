// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterName begins the names of our filters where there is no tcx. The rest says which process
// they belong to.
const filterName = "sidestep-takeover-"

// process tells our filters from those that another agent, or an earlier one, has left.
var process = filterName + strconv.FormatInt(time.Now().UnixNano(), 36)

// filterHandle and the port make the handle of a filter.
const filterHandle = 0x51de << 16

// filterPriority makes ours the first filter, since it only ever passes packets on or drops them.
const filterPriority = 1

// devices is where the program is attached: what the pod receives packets on, except for loopback.
type devices struct {
	cfg     Config
	links   map[int]link.Link // by the index of the interface
	filters map[int]bool      // clsact, below Linux 6.6
	made    map[int]bool      // clsact that was not there before
}

func newDevices(cfg Config) *devices {
	return &devices{cfg: cfg, links: map[int]link.Link{}, filters: map[int]bool{}, made: map[int]bool{}}
}

// attach attaches wherever that has not been done. It may be called again when there are new
// interfaces.
func (d *devices) attach(program *ebpf.Program) error {
	return d.cfg.Namespace.Do(func() error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return fmt.Errorf("list the interfaces of the pod: %w", err)
		}
		var errs []error
		for _, i := range interfaces {
			if i.Flags&net.FlagLoopback != 0 || d.links[i.Index] != nil || d.filters[i.Index] {
				continue
			}
			if err := d.attachTo(i.Index, program); err != nil {
				errs = append(errs, fmt.Errorf("attach to interface %s of the pod: %w", i.Name, err))
			}
		}
		return errors.Join(errs...)
	})
}

func (d *devices) attachTo(index int, program *ebpf.Program) error {
	if d.cfg.clsact {
		return d.addFilter(index, program)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: program,
		Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if errors.Is(err, ebpf.ErrNotSupported) { // before Linux 6.6
		return d.addFilter(index, program)
	}
	if err != nil {
		return err
	}
	d.links[index] = l
	return nil
}

func (d *devices) addFilter(index int, program *ebpf.Program) error {
	clsact := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0),
			Parent: netlink.HANDLE_CLSACT},
		QdiscType: "clsact",
	}
	switch err := netlink.QdiscAdd(clsact); {
	case err == nil:
		d.made[index] = true
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("add clsact: %w", err)
	}
	if err := netlink.FilterReplace(d.filter(index, program.FD())); err != nil {
		return fmt.Errorf("add a filter: %w", err)
	}
	d.filters[index] = true
	return nil
}

func (d *devices) filter(index, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: filterHandle | uint32(d.cfg.Port),
			Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: fd, Name: process, DirectAction: true,
	}
}

// sweep removes the filters that a killed agent has left on the pod's devices, where there was no
// tcx. They pass everything, for it no longer beats, but look at each packet.
func sweep(ns Namespace) error {
	return ns.Do(func() error {
		all, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list the interfaces of the pod: %w", err)
		}
		var errs []error
		for _, l := range all {
			errs = append(errs, sweepDevice(l))
		}
		return errors.Join(errs...)
	})
}

func sweepDevice(l netlink.Link) error {
	filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil // there is no clsact
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterName) && b.Name != process {
			if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove a filter of a former node agent: %w", err)
			}
		}
	}
	return nil
}

// detach leaves all packets alone.
func (d *devices) detach() error {
	var errs []error
	for index, l := range d.links {
		errs = append(errs, l.Close())
		delete(d.links, index)
	}
	if len(d.filters) == 0 {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, d.cfg.Namespace.Do(func() error {
		for index := range d.filters {
			if err := d.removeFilter(index); err != nil {
				return fmt.Errorf("stop watching open connections: %w", err)
			}
			delete(d.filters, index)
		}
		return nil
	}))...)
}

func (d *devices) removeFilter(index int) error {
	if err := netlink.FilterDel(d.filter(index, -1)); err != nil && !absent(err) {
		return err
	}
	if !d.made[index] {
		return nil
	}
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil // it is gone with all that was on it
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := netlink.FilterList(l, parent); err != nil || len(others) > 0 {
			return nil
		}
	}
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
	if at < 0 {
		return nil
	}
	if err := netlink.QdiscDel(qdiscs[at]); err != nil && !absent(err) {
		return err
	}
	return nil
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
