// SPDX-License-Identifier: Apache-2.0

// Package load asks a service many times, with requests of two kinds mixed: those that an intercept
// matches and those that it does not. It records who answered, what failed and how long it took.
package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Plan says what to ask.
type Plan struct {
	// Target is http://HOST:PORT/PATH, tcp://HOST:PORT for package lines or grpc://HOST:PORT for
	// package greeter.
	Target string
	// Requests is how many; 0 means as many as fit into Duration.
	Requests int
	// Duration ends the load; 0 means when all requests are done.
	Duration    time.Duration
	Concurrency int
	// Rate is how many requests to start per second at most; 0 means as many as possible.
	Rate float64
	// Matched is the share of requests that carry the Matching headers or path, from 0 to 1.
	Matched  float64
	Matching Variant
	// Method is GET unless set. A GET on a kept-alive connection that breaks is sent once more by
	// Go's client, as by browsers; a POST is not.
	Method string
	// KeepAlive uses connections again; otherwise each request has its own.
	KeepAlive bool
	// Timeout is for one request.
	Timeout time.Duration
	// Laptop is the name of the service that answers in the app's place.
	Laptop string
}

// Variant is what makes a request match.
type Variant struct {
	// Headers are "name: value".
	Headers []string
	// Path takes the place of the target's.
	Path string
}

// reply is who answered: the service that was asked, and whether the laptop had a part in it.
type reply struct {
	service, pod string
	laptop       bool
}

// asker sends one request.
type asker interface {
	ask(ctx context.Context, matched bool) (reply, error)
	close()
}

func (p Plan) check() error {
	switch {
	case p.Requests <= 0 && p.Duration <= 0:
		return errors.New("neither a number of requests nor a duration is given")
	case p.Concurrency < 1:
		return fmt.Errorf("concurrency is %d, the least is 1", p.Concurrency)
	case p.Matched < 0 || p.Matched > 1:
		return fmt.Errorf("the share of matched requests is %v, it goes from 0 to 1", p.Matched)
	case p.Rate < 0:
		return fmt.Errorf("the rate is %v", p.Rate)
	case p.Timeout <= 0:
		return fmt.Errorf("the timeout is %s", p.Timeout)
	}
	for _, header := range p.Matching.Headers {
		if _, _, found := strings.Cut(header, ":"); !found {
			return fmt.Errorf(`header %q is not "name: value"`, header)
		}
	}
	return nil
}

func (p Plan) asker() (asker, error) {
	target, err := url.Parse(p.Target)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	switch target.Scheme {
	case "http":
		return newHTTPAsker(p, target)
	case "tcp":
		return &lineAsker{address: target.Host, laptop: p.Laptop}, nil
	case "grpc":
		return newGRPCAsker(p, target.Host)
	default:
		return nil, fmt.Errorf("target %q does not begin with http://, tcp:// or grpc://", p.Target)
	}
}

// matches spreads the matched requests evenly, so that their number is exact.
func (p Plan) matches(index int64) bool {
	return math.Floor(float64(index+1)*p.Matched) > math.Floor(float64(index)*p.Matched)
}

// Run carries the plan out. When the context ends it starts no more requests and sums up those that
// were made.
func Run(ctx context.Context, plan Plan) (*Summary, error) {
	if err := plan.check(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	asker, err := plan.asker()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer asker.close()
	if plan.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, plan.Duration)
		defer cancel()
	}

	started := time.Now()
	var next atomic.Int64
	parts := make([]*Summary, plan.Concurrency)
	var workers sync.WaitGroup
	for i := range parts {
		parts[i] = newSummary(started)
		workers.Go(func() { work(ctx, plan, asker, &next, parts[i]) })
	}
	workers.Wait()
	total := newSummary(started)
	for _, part := range parts {
		total.add(part)
	}
	total.finish(time.Since(started))
	return total, nil
}

func work(ctx context.Context, plan Plan, asker asker, next *atomic.Int64, into *Summary) {
	for {
		index := next.Add(1) - 1
		if plan.Requests > 0 && index >= int64(plan.Requests) {
			return
		}
		if plan.Rate > 0 {
			due := into.Started.Add(time.Duration(float64(index) / plan.Rate * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		matched := plan.matches(index)
		// What was started is brought to its end.
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), plan.Timeout)
		begin := time.Now()
		got, err := asker.ask(one, matched)
		into.record(begin, matched, got, err)
		cancel()
	}
}

// quantile of sorted durations, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := min(int(math.Ceil(q*float64(len(sorted))))-1, len(sorted)-1)
	return float64(sorted[max(at, 0)].Microseconds()) / 1000
}
