package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// wrk loads the app over HTTP/1.1 and reads wrk's report.
func (b *bench) wrk(ctx context.Context, w way, connections int, more ...string) (sample, error) {
	args := append([]string{"wrk", "-t1", "-c", fmt.Sprint(connections), "-d", wholeSeconds(b.duration), "--latency"}, more...)
	out, err := lab.Output(b.OnNode(ctx, w.machine(), append(args, w.url("/bytes/256"))...))
	if err != nil {
		return sample{}, err
	}
	return readWrk(out)
}

// wholeSeconds is how wrk wants it.
func wholeSeconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

func readWrk(out string) (s sample, err error) {
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "Requests/sec:":
			_, err = fmt.Sscan(fields[1], &s.rate)
		case len(fields) > 3 && fields[1] == "requests" && fields[2] == "in":
			_, err = fmt.Sscan(fields[0], &s.done)
		case len(fields) == 2 && fields[0] == "50%":
			s.p50, err = microseconds(fields[1])
		case len(fields) == 2 && fields[0] == "99%":
			s.p99, err = microseconds(fields[1])
		case strings.Contains(line, "Socket errors") || strings.Contains(line, "Non-2xx"):
			return s, fmt.Errorf("wrk: %s", strings.TrimSpace(line))
		}
		if err != nil {
			return s, fmt.Errorf("read wrk's %q: %w", line, err)
		}
	}
	if s.rate == 0 || s.done == 0 {
		return s, fmt.Errorf("wrk gave no rate:\n%s", out)
	}
	return s, nil
}

func microseconds(text string) (float64, error) {
	d, err := time.ParseDuration(text)
	return float64(d.Nanoseconds()) / 1000, err
}

var (
	h2loadRate   = regexp.MustCompile(`finished in [^,]+, ([0-9.]+) req/s`)
	h2loadCounts = regexp.MustCompile(`requests: .* ([0-9]+) succeeded, 0 failed, 0 errored, 0 timeout`)
)

// h2load loads a URL over HTTP/2 with prior knowledge.
func (b *bench) h2load(ctx context.Context, connections, streams int, url string) (sample, error) {
	out, err := lab.Output(b.OnNode(ctx, node, "h2load", "-t1", "-c", fmt.Sprint(connections), "-m", fmt.Sprint(streams),
		"-D", fmt.Sprint(b.duration.Seconds()), url))
	if err != nil {
		return sample{}, err
	}
	return readH2load(out)
}

func readH2load(out string) (s sample, err error) {
	rate, counts := h2loadRate.FindStringSubmatch(out), h2loadCounts.FindStringSubmatch(out)
	if rate == nil || counts == nil {
		return s, fmt.Errorf("h2load:\n%s", out)
	}
	_, err = fmt.Sscan(rate[1]+" "+counts[1], &s.rate, &s.done)
	return s, err
}

// curl makes one transfer of bulkBytes and gives its speed, which write says.
func (b *bench) curl(ctx context.Context, write string, args ...string) (s sample, err error) {
	argv := append([]string{"curl", "--fail", "--silent", "--show-error", "-o", "/dev/null", "-w", write}, args...)
	out, err := lab.Output(b.OnNode(ctx, node, argv...))
	if err != nil {
		return s, err
	}
	var bytesPerSecond float64
	if _, err := fmt.Sscan(out, &bytesPerSecond); err != nil || bytesPerSecond == 0 {
		return s, errors.Join(fmt.Errorf("curl gave no speed: %q", out), err)
	}
	return sample{rate: bytesPerSecond / 1e6, done: bulkBytes / 1e6}, nil
}
