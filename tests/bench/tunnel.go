// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// tunnelRows are bulk between a laptop and the cluster, near and far.
func (b *bench) tunnelRows() (rows []row) {
	for _, far := range []struct {
		roundTrip        time.Duration
		settle, duration time.Duration
		toLaptop         []bool // or from it; over a long way both are alike
	}{
		{0, 200 * time.Millisecond, b.duration, []bool{true, false}},
		{20 * time.Millisecond, time.Second / 2, b.duration, []bool{true}},
		{80 * time.Millisecond, time.Second, 2 * b.duration, []bool{true}},
	} {
		for _, connections := range []int{1, 8} {
			for _, toLaptop := range far.toLaptop {
				rows = append(rows, b.tunnelRow(far.roundTrip, toLaptop,
					bulk{connections: connections, settle: far.settle, duration: far.duration}))
			}
		}
	}
	return rows
}

func (b *bench) tunnelRow(roundTrip time.Duration, toLaptop bool, load bulk) row {
	name, direction := "near", "to the cluster"
	if roundTrip > 0 {
		name = fmt.Sprintf("%s away", roundTrip)
	}
	if toLaptop {
		direction = "to the laptop"
	}
	return row{
		name: fmt.Sprintf("bulk %s, %s, connections: %d", direction, name, load.connections),
		unit: "MB/s", per: "MB",
		ways: []way{
			{name: rawTCP, address: fmt.Sprintf("%s:%d", b.nodes["control-plane"], bulkPort), from: "laptop"},
			{name: byTunnel, address: fmt.Sprintf("%s:%d", b.plain.IP, goPort),
				intercept: []string{"--port", fmt.Sprint(bulkPort, ":go"), "--mechanism", "tcp"}},
			{name: portForward, address: fmt.Sprintf("127.0.0.1:%d", forwardPort), from: "laptop"},
		},
		prepare: func(ctx context.Context) (func(), error) {
			return all(ctx, func(ctx context.Context) (func(), error) { return b.far(ctx, roundTrip) },
				b.bulkServer("laptop"), b.bulkServer("control-plane"), b.forward(bulkPort))
		},
		measure: func(ctx context.Context, w way) (sample, error) {
			load := load
			load.upload = toLaptop == (w.name == byTunnel) // through a tcp intercept the laptop is the server
			return b.transfer(ctx, w, load)
		},
	}
}

// bulkServer keeps a server of bulk on a machine.
func (b *bench) bulkServer(machine string) func(context.Context) (stop func(), err error) {
	return func(ctx context.Context) (stop func(), err error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return b.serve(ctx, machine, bulkPort, func(ctx context.Context) *exec.Cmd {
			return b.OnNode(ctx, machine, self, "-bulk-server", fmt.Sprint(":", bulkPort))
		})
	}
}

// far puts a delay between laptop and cluster, with connections that have never known another.
func (b *bench) far(ctx context.Context, roundTrip time.Duration) (undo func(), err error) {
	if roundTrip == 0 {
		return func() {}, nil
	}
	if undo, err = b.delay(ctx, roundTrip/2); err != nil {
		return nil, err
	}
	if _, err = b.ann.Sidestep(ctx, "quit", "-s"); err == nil {
		err = b.connect(ctx)
	}
	if err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

func (b *bench) connect(ctx context.Context) error {
	_, err := b.ann.Sidestep(ctx, "connect", "--namespace", lab.Namespace)
	return err
}
