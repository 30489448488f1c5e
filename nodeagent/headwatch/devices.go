// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sidestep.dev/sidestep/nodeagent/tc"
)

// filterName begins the names of our filters where there is no tcx. The rest says which process they belong to.
// A released version knows them by it, too.
const filterName = "sidestep-takeover-"

// process tells our filters from those that another agent, or an earlier one, has left.
var process = filterName + strconv.FormatInt(time.Now().UnixNano(), 36)

// filters numbers the filters of this process: two pods may share a namespace.
var filters atomic.Uint32

// firstHandle is the handle of the first filter.
const firstHandle = 0x51de << 16

// devices is where the program is attached: what the pod receives packets on, except for loopback.
type devices struct {
	cfg    Config
	filter tc.Filter
	on     map[int]attachment // by the index of the device
}

// attachment is a link, or a filter with the number of its program.
type attachment struct {
	link link.Link // nil where it is a filter
	id   ebpf.ProgramID
	made bool // the qdisc was made for the filter
}

func newDevices(cfg Config) *devices {
	return &devices{cfg: cfg, on: map[int]attachment{},
		filter: tc.Filter{Name: process, Handle: firstHandle + filters.Add(1)}}
}

// attach attaches wherever that has not been done. It is called again because there may be new devices.
func (d *devices) attach(program *ebpf.Program) error {
	return d.cfg.Namespace.Do(func() error {
		all, err := tc.Devices()
		errs := []error{err}
		for _, device := range all {
			if _, ok := d.on[device.Index]; ok || device.Index == tc.Loopback {
				continue
			}
			a, err := d.attachTo(device.Index, program)
			if err != nil {
				errs = append(errs, fmt.Errorf("attach to device %s of pod: %w", device.Name, err))
				continue
			}
			d.on[device.Index] = a
		}
		return errors.Join(errs...)
	})
}

func (d *devices) attachTo(index int, program *ebpf.Program) (a attachment, err error) {
	if !d.cfg.Clsact {
		a.link, err = tc.Link(index, program)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return a, err
		}
	}
	info, err := program.Info()
	if err != nil {
		return a, fmt.Errorf("inspect headwatch program: %w", err)
	}
	a.id, _ = info.ID() // known since Linux 4.13
	a.made, err = d.filter.Attach(index, program)
	return a, err
}

// detach lets all packets pass.
func (d *devices) detach() error {
	var errs []error
	byFilter := false
	for index, a := range d.on {
		if a.link != nil {
			errs = append(errs, a.link.Close())
			delete(d.on, index)
		} else {
			byFilter = true
		}
	}
	if !byFilter {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, d.cfg.Namespace.Do(func() error {
		var errs []error
		for index, a := range d.on {
			errs = append(errs, d.filter.Detach(index, a.id, a.made))
			delete(d.on, index)
		}
		return errors.Join(errs...)
	}))...)
}

// Sweep removes the filters that a killed agent has left on the pod's devices, where there was no tcx. They pass
// everything without a heartbeat, but they look at each packet.
func Sweep(ns Namespace) error {
	return ns.Do(func() error {
		return tc.Sweep(func(name string) bool { return strings.HasPrefix(name, filterName) && name != process })
	})
}
