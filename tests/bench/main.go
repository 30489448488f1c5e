// Command bench measures what an intercept costs those whose requests it does not match, and how quick it is to make. Each figure is taken on the
// same pod with and without the intercept in one run, turn about, so that a machine whose speed drifts does not matter: believe the ratios.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

const (
	rounds  = 5
	seconds = 3 // of one measurement
	attachs = 20
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	l, err := lab.Up(ctx, os.Stderr)
	if err != nil {
		return err
	}
	defer l.Close()
	if !l.Local() {
		return fmt.Errorf("the load generator runs on a node of the local cluster: unset KUBECONFIG")
	}
	admin, err := l.Administrator(ctx)
	if err != nil {
		return err
	}
	if _, _, err := admin.Install(ctx); err != nil {
		return err
	}
	defer func() { _, _ = admin.Sidestep(context.WithoutCancel(ctx), "uninstall", "--everything") }()
	ann, err := l.Developer(ctx, "ann")
	if err != nil {
		return err
	}
	defer func() { _, _ = ann.Sidestep(context.WithoutCancel(ctx), "quit", "-s") }()
	if _, err := ann.Sidestep(ctx, "connect", "--namespace", lab.Namespace); err != nil {
		return err
	}
	stop, err := ann.Serve(ctx, "serve", "127.0.0.1:9000")
	if err != nil {
		return err
	}
	defer stop()
	b := &bench{Lab: l, ann: ann}
	if err := b.attach(ctx); err != nil {
		return err
	}
	return b.passThrough(ctx)
}

type bench struct {
	*lab.Lab
	ann *lab.Developer
}

func (b *bench) intercept(ctx context.Context) error {
	_, err := b.ann.Sidestep(ctx, "intercept", "orders", "--port", "9000", "--http-header", "x-user=ann")
	return err
}

func (b *bench) leave(ctx context.Context) error {
	_, err := b.ann.Sidestep(ctx, "leave", "orders")
	return err
}

// attach measures from the start of the command to its return, and to the first answer of the laptop to a curl that is started then.
func (b *bench) attach(ctx context.Context) error {
	var returned, first []float64
	for range attachs {
		started := time.Now()
		if err := b.intercept(ctx); err != nil {
			return err
		}
		returned = append(returned, milliseconds(time.Since(started)))
		answers, err := b.Curl(ctx, "node1", 1, []lab.Request{{URL: b.service(ctx), Headers: []string{"x-user: ann"}}})
		if err != nil {
			return err
		}
		first = append(first, milliseconds(time.Since(started)))
		if answers[0].Service != "laptop" {
			return fmt.Errorf("the first request after intercept returned was answered by %s", answers[0].Service)
		}
		if err := b.leave(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("intercept, %d times, 2 pods on 2 nodes: returns after p50 %.0f ms, p95 %.0f ms; the laptop has answered a curl after p50 %.0f ms, p95 %.0f ms\n\n",
		attachs, quantile(returned, .5), quantile(returned, .95), quantile(first, .5), quantile(first, .95))
	return nil
}

func (b *bench) service(ctx context.Context) string {
	address, err := b.Kubectl(ctx, "-n", lab.Namespace, "get", "service", "orders", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return "http://unknown.invalid"
	}
	return "http://" + address
}

// passThrough compares unmatched requests to one pod with and without an intercept on it.
func (b *bench) passThrough(ctx context.Context) error {
	pods, err := b.Pods(ctx, lab.Namespace, "app=orders")
	if err != nil {
		return err
	}
	pod := pods[0]
	url := "http://" + pod.IP + ":8080/bytes/256"
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "connections\tdirect req/s\tintercepted req/s\tratio\tp50 direct\tp50 intercepted\tp99 direct\tp99 intercepted\t")
	for _, connections := range []int{1, 32, 256} {
		var direct, steered []wrkResult
		for range rounds {
			d, err := b.wrk(ctx, pod.Node, connections, url)
			if err != nil {
				return err
			}
			if err := b.intercept(ctx); err != nil {
				return err
			}
			s, err := b.wrk(ctx, pod.Node, connections, url)
			if err != nil {
				return err
			}
			if err := b.leave(ctx); err != nil {
				return err
			}
			direct, steered = append(direct, d), append(steered, s)
		}
		d, s := median(direct), median(steered)
		fmt.Fprintf(table, "%d\t%.0f\t%.0f\t%.2f\t%s\t%s\t%s\t%s\t\n", connections, d.rate, s.rate, s.rate/d.rate, d.p50, s.p50, d.p99, s.p99)
	}
	return table.Flush()
}

type wrkResult struct {
	rate     float64 // requests per second
	p50, p99 time.Duration
}

// wrk loads a URL from a node and reads wrk's report.
func (b *bench) wrk(ctx context.Context, node string, connections int, url string) (wrkResult, error) {
	out, err := lab.Output(b.OnNode(ctx, node, "wrk", "-t1", "-c", fmt.Sprint(connections), "-d", fmt.Sprintf("%ds", seconds), "--latency", url))
	if err != nil {
		return wrkResult{}, err
	}
	var r wrkResult
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "Requests/sec:":
			_, err = fmt.Sscan(fields[1], &r.rate)
		case len(fields) == 2 && fields[0] == "50%":
			r.p50, err = time.ParseDuration(fields[1])
		case len(fields) == 2 && fields[0] == "99%":
			r.p99, err = time.ParseDuration(fields[1])
		case strings.Contains(line, "Socket errors") || strings.Contains(line, "Non-2xx"):
			return r, fmt.Errorf("wrk: %s", strings.TrimSpace(line))
		}
		if err != nil {
			return r, fmt.Errorf("read wrk's %q: %w", line, err)
		}
	}
	if r.rate == 0 {
		return r, fmt.Errorf("wrk gave no rate:\n%s", out)
	}
	return r, nil
}

// median takes each figure's own median.
func median(all []wrkResult) wrkResult {
	var rate, p50, p99 []float64
	for _, r := range all {
		rate, p50, p99 = append(rate, r.rate), append(p50, float64(r.p50)), append(p99, float64(r.p99))
	}
	return wrkResult{quantile(rate, .5), time.Duration(quantile(p50, .5)), time.Duration(quantile(p99, .5))}
}

func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
