// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// wrk loads the app over HTTP/1.1 and reads wrk's report.
func (b *bench) wrk(ctx context.Context, w way, connections int, more ...string) (sample, error) {
	// wrk counts in whole seconds; when it is interrupted it sums up what it has done.
	args := append([]string{"timeout", "--preserve-status", "--signal", "INT", fmt.Sprint(b.duration.Seconds()),
		"wrk", "-t1", "-c", fmt.Sprint(connections), "-d", "60s", "--latency"}, more...)
	out, err := lab.Output(b.OnNode(ctx, w.machine(), append(args, w.url("/bytes/256"))...))
	if err != nil {
		return sample{}, err
	}
	return readWrk(out)
}

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
	out, err := lab.Output(b.OnNode(ctx, node, "h2load", "-t1", "-c", fmt.Sprint(connections), "-m",
		fmt.Sprint(streams),
		"-D", fmt.Sprintf("%dms", b.duration.Milliseconds()), url))
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

// curl makes one transfer that does not finish, and returns its speed.
func (b *bench) curl(ctx context.Context, args ...string) (sample, error) {
	argv := append([]string{"curl", "--fail", "--silent", "--show-error", "-o", "/dev/null",
		"--max-time", fmt.Sprint(b.duration.Seconds()),
		"-w", "%{http_code} %{size_download} %{size_upload} %{time_total}"}, args...)
	out, err := lab.Output(b.OnNode(ctx, node, argv...))
	if err == nil {
		err = errors.New("the transfer has come to its end")
	} else if failed := new(exec.ExitError); errors.As(err, &failed) && failed.ExitCode() == curlTimeout {
		err = nil
	}
	if err != nil {
		return sample{}, err
	}
	return readCurl(out)
}

// curlTimeout is curl's exit code when its time is over (curl(1)).
const curlTimeout = 28

func readCurl(out string) (sample, error) {
	var status int
	var down, up, seconds float64
	if _, err := fmt.Sscan(out, &status, &down, &up, &seconds); err != nil {
		return sample{}, fmt.Errorf("read curl's %q: %w", out, err)
	}
	done := (down + up) / 1e6
	if done == 0 || seconds == 0 || status != 0 && status != http.StatusOK {
		return sample{}, fmt.Errorf("curl gave no speed: %q", out)
	}
	return sample{rate: done / seconds, done: done}, nil
}
