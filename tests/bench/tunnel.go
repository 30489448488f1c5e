package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// tunnelRows are bulk between a laptop and the cluster, near and far.
func (b *bench) tunnelRows(dir string) (rows []row, err error) {
	for _, far := range []struct {
		roundTrip time.Duration
		bytes     int64  // of all connections together
		toLaptop  []bool // or from it; over a long way both are alike
	}{{0, 256 << 20, []bool{true, false}}, {20 * time.Millisecond, 64 << 20, []bool{true}}, {80 * time.Millisecond, 32 << 20, []bool{true}}} {
		for _, connections := range []int{1, 8} {
			each := far.bytes / int64(connections)
			zeros := filepath.Join(dir, fmt.Sprint(each))
			if err := os.WriteFile(zeros, nil, 0o600); err != nil {
				return nil, err
			}
			if err := os.Truncate(zeros, each); err != nil {
				return nil, err
			}
			for _, toLaptop := range far.toLaptop {
				rows = append(rows, b.tunnelRow(far.roundTrip, connections, each, zeros, toLaptop))
			}
		}
	}
	return rows, nil
}

func (b *bench) tunnelRow(roundTrip time.Duration, connections int, each int64, zeros string, toLaptop bool) row {
	name, direction := "near", "to the cluster"
	if roundTrip > 0 {
		name = fmt.Sprintf("%s away", roundTrip)
	}
	if toLaptop {
		direction = "to the laptop"
	}
	return row{
		name: fmt.Sprintf("bulk %s, %s, connections: %d", direction, name, connections), unit: "MB/s", per: "MB",
		ways: []way{
			{name: rawTCP, address: fmt.Sprintf("%s:%d", b.nodes["control-plane"], plainPort), from: "laptop"},
			{name: byTunnel, address: fmt.Sprintf("%s:%d", b.plain.IP, goPort), intercept: []string{"--port", "9000:go", "--mechanism", "tcp"}},
			{name: portForward, address: fmt.Sprintf("127.0.0.1:%d", forwardPort), from: "laptop"},
		},
		prepare: func(ctx context.Context) (func(), error) {
			return all(ctx, b.forward, b.plainServer, func(ctx context.Context) (func(), error) { return b.delay(ctx, roundTrip/2) })
		},
		measure: func(ctx context.Context, w way) (sample, error) {
			// Through a tcp intercept the laptop is the server.
			if upload := toLaptop == (w.name == byTunnel); upload {
				return b.transfer(ctx, w, connections, each, "-T", zeros, "-H", "Expect:", w.url("/sink"))
			}
			return b.transfer(ctx, w, connections, each, w.url(fmt.Sprintf("/bytes/%d", each)))
		},
	}
}

// plainServer keeps a server at the cluster's end of the link to the laptop.
func (b *bench) plainServer(ctx context.Context) (stop func(), err error) {
	return b.serve(ctx, "control-plane", plainPort, func(ctx context.Context) *exec.Cmd {
		return b.OnNode(ctx, "control-plane", b.apps, "serve", "--listen", fmt.Sprintf(":%d", plainPort))
	})
}

// transfer makes some transfers at once, each of so many bytes, with one curl.
func (b *bench) transfer(ctx context.Context, w way, connections int, each int64, args ...string) (sample, error) {
	argv := []string{"curl", "--fail", "--silent", "--show-error", "--parallel", "--parallel-immediate"}
	for range connections {
		argv = append(append(argv, "-o", "/dev/null"), args...)
	}
	started := time.Now()
	if _, err := lab.Output(b.OnNode(ctx, w.machine(), argv...)); err != nil {
		return sample{}, err
	}
	done := float64(each*int64(connections)) / 1e6
	return sample{rate: done / time.Since(started).Seconds(), done: done}, nil
}
