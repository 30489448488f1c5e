// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/tests/lab"
)

// delayed is the name of the tun devices.
const delayed = "delayed"

// delay makes packets between the laptop and the control plane take so long, each way, until it is
// undone. This program carries them from one tun device to another, since not every kernel has
// netem.
func (b *bench) delay(ctx context.Context, oneWay time.Duration) (undo func(), err error) {
	if oneWay == 0 {
		return func() {}, nil
	}
	laptop, controlPlane := b.nodes["laptop"], b.nodes["control-plane"]
	var ends [2]*os.File
	undo, err = all(ctx,
		func(ctx context.Context) (undo func(), err error) {
			ends[0], undo, err = b.tun(ctx, "laptop", laptop, controlPlane)
			return undo, err
		},
		func(ctx context.Context) (undo func(), err error) {
			ends[1], undo, err = b.tun(ctx, "control-plane", controlPlane, laptop)
			return undo, err
		})
	if err != nil {
		return nil, err
	}
	go carry(ends[0], ends[1], oneWay)
	go carry(ends[1], ends[0], oneWay)
	return undo, nil
}

// tun creates a tun device on a machine, and replaces the machine's route from one of its addresses
// to another with one through it.
func (b *bench) tun(ctx context.Context, machine, from, to string) (end *os.File, undo func(), err error) {
	before, err := lab.Output(b.OnNode(ctx, machine, "ip", "route", "show", to+"/32"))
	if err != nil {
		return nil, nil, err
	}
	ns, err := b.network(ctx, machine)
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	if end, err = openTun(ns, delayed); err != nil {
		return nil, nil, fmt.Errorf("on %s: %w", machine, err)
	}
	undo = func() {
		_ = end.Close() // the device goes with it, and its route with the device
		if before != "" {
			_, _ = lab.Output(b.OnNode(context.WithoutCancel(ctx), machine,
				append([]string{"ip", "route", "replace"}, strings.Fields(before)...)...))
		}
	}
	if _, err = lab.Output(b.OnNode(ctx, machine, "ip", "route", "replace", to+"/32", "dev", delayed,
		"src", from)); err != nil {
		undo()
		return nil, nil, err
	}
	return end, undo, nil
}

// network opens the network namespace of a machine.
func (b *bench) network(ctx context.Context, machine string) (*netns.Namespace, error) {
	out, err := lab.Output(b.OnNode(ctx, machine, "readlink", "/proc/self/ns/net"))
	if err != nil {
		return nil, err
	}
	inode, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(out), "net:[]"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("network namespace of %s: %w", machine, err)
	}
	ns, err := netns.Find("/proc", inode)
	if err == nil && ns == nil {
		err = fmt.Errorf("network namespace %d of %s is not to be found", inode, machine)
	}
	return ns, err
}
