package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// figure is all rounds of one way of one row.
type figure struct {
	Row    string    `json:"row"`
	Way    string    `json:"way"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	P50    []float64 `json:"p50Microseconds,omitempty"`
	P99    []float64 `json:"p99Microseconds,omitempty"`
}

// report prints medians and keeps everything. Spread is the difference between the best and the worst round, of the median.
func (b *bench) report(out io.Writer, r row, samples map[string][]sample) {
	var direct float64
	for _, w := range ways {
		f := figure{Row: r.name, Way: w.name, Unit: r.unit}
		for _, s := range samples[w.name] {
			f.Values = append(f.Values, s.rate)
			if s.p50 > 0 {
				f.P50, f.P99 = append(f.P50, s.p50), append(f.P99, s.p99)
			}
		}
		b.figures = append(b.figures, f)
		rate := quantile(f.Values, .5)
		if direct == 0 {
			direct = rate
		}
		spread := 100 * (slices.Max(f.Values) - slices.Min(f.Values)) / rate
		fmt.Fprintf(out, "%s\t%s\t%.0f\t%s\t%.2f\t%.0f %%\t%s\t%s\t\n", r.name, w.name, rate, r.unit, rate/direct, spread, latency(f.P50), latency(f.P99))
	}
}

func latency(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", quantile(values, .5))
}

// quantile leaves values as they are.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// save writes the figures with what they were measured on.
func (b *bench) save() error {
	if b.results == "" {
		return nil
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("ask for the kernel's version: %w", err)
	}
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return fmt.Errorf("ask for the commit: %w", err)
	}
	text, err := json.MarshalIndent(map[string]any{
		"time": time.Now().UTC().Format(time.RFC3339), "commit": strings.TrimSpace(string(commit)),
		"kernel": unix.ByteSliceToString(uts.Release[:]), "cpu": cpu(), "cpus": runtime.NumCPU(),
		"rounds": b.rounds, "seconds": b.duration.Seconds(), "figures": b.figures,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.results, append(text, '\n'), 0o644)
}

func cpu() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(line, "model name"); found {
			return strings.TrimLeft(strings.TrimSpace(name), ": \t")
		}
	}
	return "unknown"
}
