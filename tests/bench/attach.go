package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/lab"
)

// attached is the workload that attach measures with.
const attached = "attached"

// attachFor is about how long an intercept, a curl and a leave take, together.
const attachFor = 600 * time.Millisecond

// attach measures how long a developer waits for an intercept of a workload, and what other users of it notice meanwhile.
func (b *bench) attach(ctx context.Context, replicas int) error {
	_, remove, err := b.deploy(ctx, attached, "", replicas, servicePort{"http", goPort})
	if err != nil {
		return err
	}
	defer remove()
	address, err := b.Kubectl(ctx, "-n", lab.Namespace, "get", "service", attached, "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:%d", address, goPort)
	before, err := b.bystanders(ctx, url, 5*time.Second)
	if err != nil {
		return err
	}
	waits := []waiting{
		{What: "`intercept` returns", Pods: replicas},
		{What: "a curl started then has its answer from the laptop", Pods: replicas},
		{What: "`leave` returns", Pods: replicas},
	}
	type seen struct {
		*load.Summary
		error
	}
	meanwhile := make(chan seen, 1)
	go func() {
		s, err := b.bystanders(ctx, url, time.Duration(b.attaches)*attachFor)
		meanwhile <- seen{s, err}
	}()
	fmt.Printf("intercepts of %d pods, one after the other\n", replicas)
	for range b.attaches {
		times, err := b.attachOnce(ctx, url)
		if err != nil {
			return err
		}
		for i, t := range times {
			waits[i].Values = append(waits[i].Values, float64(t.Microseconds())/1000)
		}
	}
	for _, w := range waits {
		fmt.Printf("  %-52s p50 %4.0f ms  p95 %4.0f ms\n", w.What, median(w.Values), quantile(w.Values, .95))
	}
	during := <-meanwhile
	if during.error != nil {
		return during.error
	}
	n := notice{
		Pods: replicas, Requests: during.UnmatchedTotal, Failed: during.UnmatchedFailed, Strayed: during.UnmatchedToLaptop,
		P50: during.Unmatched.P50, P99: during.Unmatched.P99, Max: during.Unmatched.Max, P50Before: before.Unmatched.P50, P99Before: before.Unmatched.P99,
	}
	fmt.Printf("  others: %s\n", n)
	b.results.Waits = append(b.results.Waits, waits...)
	b.results.Notices = append(b.results.Notices, n)
	return nil
}

// notice is what other users of a workload see of intercepts that come and go. Times are in milliseconds.
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

// attachOnce gives how long the parts took.
func (b *bench) attachOnce(ctx context.Context, url string) (took [3]time.Duration, err error) {
	started := time.Now()
	if err := b.intercept(ctx, attached, "--port", "9000", "--http-header", "x-user=ann"); err != nil {
		return took, err
	}
	took[0] = time.Since(started)
	answers, err := b.Curl(ctx, node, 1, []lab.Request{{URL: url, Headers: []string{"x-user: ann"}}})
	if err != nil {
		return took, err
	}
	took[1] = time.Since(started)
	if answers[0].Service != "laptop" {
		return took, fmt.Errorf("the first request after intercept returned was answered by %s", answers[0].Service)
	}
	started = time.Now()
	err = b.leave(ctx, attached)
	took[2] = time.Since(started)
	return took, err
}

// bystanders ask 50 times a second, each time on a new connection.
func (b *bench) bystanders(ctx context.Context, url string, duration time.Duration) (*load.Summary, error) {
	out, err := lab.Output(b.OnNode(ctx, node, b.apps, "load", url, "--rate", "50", "-c", "4", "--duration", duration.String(), "--matched", "0"))
	if err != nil {
		return nil, err
	}
	summary := new(load.Summary)
	if err := json.Unmarshal([]byte(out), summary); err != nil {
		return nil, fmt.Errorf("summary of the load: %w: %q", err, out)
	}
	return summary, nil
}
