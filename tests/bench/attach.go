// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/lab"
)

// attached is the workload that attach measures with.
const attached = "attached"

// attachAll measures intercepts of ever more pods of one workload.
func (b *bench) attachAll(ctx context.Context) error {
	defer b.remove(ctx, attached)
	for _, replicas := range []int{1, 10, 50} {
		err := b.row(ctx, fmt.Sprintf("attach, pods: %d", replicas),
			func(ctx context.Context) error { return b.attach(ctx, replicas) })
		if err != nil {
			return err
		}
	}
	return nil
}

// attach measures how long a developer waits for an intercept of a workload, and what other users
// of it notice meanwhile.
func (b *bench) attach(ctx context.Context, replicas int) error {
	if _, err := b.deploy(ctx, attached, "", replicas, servicePort{"http", goPort}); err != nil {
		return err
	}
	address, err := b.Kubectl(ctx, "-n", lab.Namespace, "get", "service", attached, "-o",
		"jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:%d", address, goPort)
	answers := func(ctx context.Context) error {
		_, err := b.Curl(ctx, node, 1, []lab.Request{{URL: url}})
		return err
	}
	// the node's rules for the service come after its pods
	if err := lab.Eventually(ctx, 30*time.Second, answers); err != nil {
		return err
	}
	before, err := b.bystanders(ctx, url, func() error { wait(ctx, 5*time.Second); return nil })
	if err != nil {
		return err
	}
	waits := []waiting{
		{What: "`intercept` returns", Pods: replicas},
		{What: "a curl started then has its answer from the laptop", Pods: replicas},
		{What: "`leave` returns", Pods: replicas},
	}
	fmt.Printf("intercepts of %d pods, one after the other\n", replicas)
	during, err := b.bystanders(ctx, url, func() error {
		for range b.attaches {
			times, err := b.attachOnce(ctx, url)
			if err != nil {
				return err
			}
			for i, t := range times {
				waits[i].Values = append(waits[i].Values, float64(t.Microseconds())/1000)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range waits {
		fmt.Printf("  %-52s p50 %4.0f ms  p95 %4.0f ms\n", w.What, median(w.Values), quantile(w.Values, .95))
	}
	n := notice{
		Pods: replicas, Requests: during.UnmatchedTotal, Failed: during.UnmatchedFailed,
		Strayed: during.UnmatchedToLaptop,
		P50:     during.Unmatched.P50, P99: during.Unmatched.P99, Max: during.Unmatched.Max,
		P50Before: before.Unmatched.P50, P99Before: before.Unmatched.P99,
	}
	fmt.Printf("  others: %s\n", n)
	b.results.Waits = append(b.results.Waits, waits...)
	b.results.Notices = append(b.results.Notices, n)
	return nil
}

// notice is what other users of a workload notice of intercepts that begin and end. Times are in
// milliseconds.
type notice struct {
	Pods      int     `json:"pods"`
	Requests  int     `json:"requests"`
	Failed    int     `json:"failed"`
	Strayed   int     `json:"strayed"` // that a laptop answered
	P50       float64 `json:"p50"`
	P99       float64 `json:"p99"`
	Max       float64 `json:"max"`
	P50Before float64 `json:"p50Before"`
	P99Before float64 `json:"p99Before"`
}

func (n notice) String() string {
	return fmt.Sprintf("%d requests, %d failed, %d went astray; p50 %.1f ms (%.1f without intercepts), p99 %.1f ms (%.1f), longest %.0f ms",
		n.Requests, n.Failed, n.Strayed, n.P50, n.P50Before, n.P99, n.P99Before, n.Max)
}

// attachOnce returns how long the parts took.
func (b *bench) attachOnce(ctx context.Context, url string) (took [3]time.Duration, err error) {
	started := time.Now()
	if err := b.intercept(ctx, attached, "--port", fmt.Sprint(laptopPort), "--http-header",
		"x-user=ann"); err != nil {
		return took, err
	}
	took[0] = time.Since(started)
	answers, err := b.Curl(ctx, node, 1, []lab.Request{{URL: url, Headers: []string{"x-user: ann"}}})
	if err != nil {
		return took, err
	}
	took[1] = time.Since(started)
	if answers[0].Service != "laptop" {
		return took, fmt.Errorf("the first request after intercept returned was answered by %s",
			answers[0].Service)
	}
	started = time.Now()
	err = b.leave(ctx, attached)
	took[2] = time.Since(started)
	return took, err
}

// bystanders ask 50 times a second, each time on a new connection, while something is done.
func (b *bench) bystanders(ctx context.Context, url string, meanwhile func() error) (*load.Summary, error) {
	var said, failed bytes.Buffer
	cmd := b.OnNode(ctx, node, b.apps, "load", url, "--rate", "50", "-c", "4", "--duration", "10m",
		"--matched", "0")
	cmd.Stdout, cmd.Stderr = &said, &failed
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err := meanwhile()
	_ = cmd.Process.Signal(syscall.SIGTERM) // it sums up what it has done
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, failed.String())
	}
	summary := new(load.Summary)
	if err := json.Unmarshal(said.Bytes(), summary); err != nil {
		return nil, fmt.Errorf("summary of the load: %w: %q", err, said.String())
	}
	return summary, nil
}
