// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/tc"
)

// Datapath is a way of steering.
type Datapath string

// Auto and TC leave the rest of the choice to what the kernel supports.
const (
	Auto Datapath = "auto" // SkLookup, else TC
	// at the socket lookup for a new connection, from Linux 5.9
	SkLookup Datapath = "sk_lookup"
	TC       Datapath = "tc"     // TCX, else ClsAct
	TCX      Datapath = "tcx"    // at the ingress of devices, with links, from Linux 6.6
	ClsAct   Datapath = "clsact" // at the ingress of devices, with filters, from Linux 5.8
)

// ParseDatapath parses one of the three values that users can choose.
func ParseDatapath(text string) (Datapath, error) {
	if d := Datapath(text); slices.Contains([]Datapath{Auto, SkLookup, TC}, d) {
		return d, nil
	}
	return "", fmt.Errorf("there is no datapath %q: use %s, %s or %s", text, Auto, SkLookup, TC)
}

// candidates returns the datapaths that a choice allows, the best first.
func (d Datapath) candidates() []Datapath {
	switch d {
	case Auto, "":
		return []Datapath{SkLookup, TCX, ClsAct}
	case TC:
		return []Datapath{TCX, ClsAct}
	default:
		return []Datapath{d}
	}
}

// choose returns the best datapath that the kernel supports, and the reason for the choice.
func choose(want Datapath) (chosen Datapath, why string, err error) {
	var reasons []string
	if want != Auto && want != "" {
		reasons = append(reasons, fmt.Sprintf("chosen by --datapath=%s", want))
	}
	var errs []error
	for _, d := range want.candidates() {
		err := d.supported()
		if err == nil {
			if len(reasons) == 0 {
				reasons = append(reasons, "the kernel has it")
			}
			return d, strings.Join(reasons, "; "), nil
		}
		errs = append(errs, err)
		// status shows the reason of each node: what the kernel lacks, without the error of the
		// system call.
		if lacks := (bpf.Requirement{}); errors.As(err, &lacks) {
			err = lacks
		}
		reasons = append(reasons, err.Error())
	}
	return "", "", errors.Join(errs...)
}

func (d Datapath) supported() error {
	switch d {
	case SkLookup:
		return bpf.CanSteer()
	case TCX:
		return try(func(p *ebpf.Program) error {
			l, err := tc.Link(tc.Loopback, p)
			if err != nil {
				return fmt.Errorf("attach by tcx: %w", err)
			}
			return l.Close()
		})
	case ClsAct:
		return try(func(p *ebpf.Program) error {
			if _, err := ourFilter.Attach(tc.Loopback, p); err != nil {
				return fmt.Errorf("%w: %w", bpf.NeedsClsact, err)
			}
			return nil
		})
	}
	return fmt.Errorf("there is no datapath %q", d)
}

// try loads the program for TC and calls attach with it in a new network namespace, which is gone
// afterwards.
func try(attach func(*ebpf.Program) error) error {
	if err := bpf.CanSteerTC(); err != nil {
		return err
	}
	heartbeat, err := bpf.NewHeartbeat()
	if err != nil {
		return err
	}
	defer heartbeat.Close()
	objs, err := bpf.LoadSteerTC(heartbeat)
	if err != nil {
		return err
	}
	defer objs.Close()
	result := make(chan error)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and the namespace with the
		// thread.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make a network namespace to try steering by TC in: %w", err)
			return
		}
		result <- attach(objs.Program)
	}()
	return <-result
}
