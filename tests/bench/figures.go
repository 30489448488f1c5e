// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/bench/growth"
)

// results are all figures of one run, and what they were measured on.
type results struct {
	Time    string    `json:"time"`
	Commit  string    `json:"commit"`
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // of one measurement
	Figures []figure  `json:"figures"`
	Waits   []waiting `json:"waits"`
	Notices []notice  `json:"notices"`

	Rest   []atRest       `json:"rest,omitempty"`
	Sizes  []artifact     `json:"sizes,omitempty"`
	Growth []growth.Point `json:"growth,omitempty"`
	Took   []span         `json:"took"` // parts of the run, one after the other, and at last all of it
}

// span is how long a part of the run has been.
type span struct {
	Part    string  `json:"part"`
	Seconds float64 `json:"seconds"`
}

// figure is one way of one row, with a value for each round.
type figure struct {
	Row    string    `json:"row"`
	Way    string    `json:"way"`
	Unit   string    `json:"unit"`
	Per    string    `json:"per"`
	Values []float64 `json:"values"`
	Ratios []float64 `json:"ratios"` // to the first way in the same round
	P50    []float64 `json:"p50Microseconds,omitempty"`
	P99    []float64 `json:"p99Microseconds,omitempty"`
	CPU    []float64 `json:"cpuMicroseconds"` // for one request, call or MB, of the whole machine
}

// waiting is how long a person waits for something, in milliseconds.
type waiting struct {
	What   string    `json:"what"`
	Pods   int       `json:"pods"`
	Values []float64 `json:"milliseconds"`
}

// record keeps the samples of a row, and prints them.
func (b *bench) record(r row, samples map[string][]sample) {
	fmt.Printf("%s\n", r.name)
	for _, w := range r.ways {
		f := figure{Row: r.name, Way: w.name, Unit: r.unit, Per: r.per}
		for i, s := range samples[w.name] {
			f.Values = append(f.Values, s.rate)
			f.Ratios = append(f.Ratios, s.rate/samples[r.ways[0].name][i].rate)
			f.CPU = append(f.CPU, s.cpu)
			if s.p50 > 0 {
				f.P50, f.P99 = append(f.P50, s.p50), append(f.P99, s.p99)
			}
		}
		if len(f.Values) == 0 {
			continue
		}
		b.results.Figures = append(b.results.Figures, f)
		fmt.Printf("  %-36s %9.0f %-10s  %.2f (%.2f to %.2f)  p50 %8s  p99 %8s  CPU %7.1f µs a %s\n",
			w.name, median(f.Values), r.unit,
			median(f.Ratios), slices.Min(f.Ratios), slices.Max(f.Ratios), micros(f.P50), micros(f.P99),
			median(f.CPU), r.per)
	}
}

// micros is the median of values as people write it.
func micros(values []float64) string {
	if len(values) == 0 {
		return "–"
	}
	switch v := median(values); {
	case v < 1000:
		return fmt.Sprintf("%.0f µs", v)
	case v < 10_000:
		return fmt.Sprintf("%.2f ms", v/1000)
	default:
		return fmt.Sprintf("%.0f ms", v/1000)
	}
}

func median(values []float64) float64 { return quantile(values, .5) }

// quantile leaves values as they are.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// about says what the machine and the program are.
func (b *bench) about() (results, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return results{}, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return results{}, fmt.Errorf("ask for the commit: %w", err)
	}
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(uts.Release[:]), "-")
	return results{
		Time: time.Now().UTC().Format(time.RFC3339), Commit: strings.TrimSpace(string(commit)), Kernel: kernel,
		CPU: cpu(), CPUs: runtime.NumCPU(), Rounds: b.rounds, Seconds: b.duration.Seconds(),
	}, nil
}

// save writes the figures, and the page about them.
func (b *bench) save() error {
	if b.file != "" {
		text, err := json.MarshalIndent(b.results, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.file, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if b.page == "" {
		return nil
	}
	return writePage(b.page, &b.results)
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
