package main

import (
	"context"
	"fmt"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// attach measures from the start of the command to its return, and to the first answer of the laptop to a curl that is started then.
func (b *bench) attach(ctx context.Context) error {
	address, err := b.Kubectl(ctx, "-n", lab.Namespace, "get", "service", "orders", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	var returned, first, left []float64
	for range b.attaches {
		started := time.Now()
		if err := b.intercept(ctx, "orders"); err != nil {
			return err
		}
		returned = append(returned, milliseconds(time.Since(started)))
		answers, err := b.Curl(ctx, "node1", 1, []lab.Request{{URL: "http://" + address, Headers: []string{"x-user: ann"}}})
		if err != nil {
			return err
		}
		first = append(first, milliseconds(time.Since(started)))
		if answers[0].Service != "laptop" {
			return fmt.Errorf("the first request after intercept returned was answered by %s", answers[0].Service)
		}
		started = time.Now()
		if err := b.leave(ctx, "orders"); err != nil {
			return err
		}
		left = append(left, milliseconds(time.Since(started)))
	}
	fmt.Printf("%d times, 2 pods on 2 nodes, in milliseconds:\n", b.attaches)
	for _, m := range []struct {
		what   string
		values []float64
	}{
		{"`intercept` returns after", returned},
		{"the laptop has answered a curl started then, after", first},
		{"`leave` returns after", left},
	} {
		fmt.Printf("  %-52s p50 %4.0f, p95 %4.0f\n", m.what, quantile(m.values, .5), quantile(m.values, .95))
		b.figures = append(b.figures, figure{Row: "attach", Way: m.what, Unit: "ms", Values: m.values})
	}
	fmt.Println()
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
