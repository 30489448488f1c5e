// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/bench/growth"
	"sidestep.dev/sidestep/tests/bench/usage"
)

func TestReportsOfToolsAreRead(t *testing.T) {
	s, err := readWrk("  Latency Distribution\n     50%  602.00us\n     99%    6.25ms\n  9 requests in 1.00s, 3.00MB read\nRequests/sec:  41276.11\n")
	require.NoError(t, err)
	assert.Equal(t, sample{rate: 41276.11, p50: 602, p99: 6250, done: 9}, s)
	_, err = readWrk("  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 5\n")
	assert.ErrorContains(t, err, "Socket errors", "a rate with errors is none")

	s, err = readH2load("finished in 3.00s, 51234.5 req/s, 12.3MB/s\nrequests: 100 total, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\n")
	require.NoError(t, err)
	assert.Equal(t, sample{rate: 51234.5, done: 100}, s)
	_, err = readH2load("finished in 3.00s, 51234.5 req/s, 12.3MB/s\nrequests: 100 total, 99 succeeded, 1 failed, 1 errored, 0 timeout\n")
	assert.Error(t, err)

	s, err = readCurl("200 1500000000 0 0.75")
	require.NoError(t, err)
	assert.Equal(t, sample{rate: 2000, done: 1500}, s)
	s, err = readCurl("000 0 750000000 0.75")
	require.NoError(t, err, "an upload has no answer when its time is over")
	assert.Equal(t, sample{rate: 1000, done: 750}, s)
	for _, out := range []string{"", "200 0 0 0.75", "404 9 0 0.75"} {
		_, err = readCurl(out)
		assert.Error(t, err, out)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{3, 1, 2}
	assert.Equal(t, 2.0, quantile(values, .5))
	assert.Equal(t, 3.0, quantile(values, .99))
	assert.Equal(t, []float64{3, 1, 2}, values)
}

func TestPictureAndPage(t *testing.T) {
	r := &results{Time: "2026-01-02T03:04:05Z", Kernel: "6.12.1", CPUs: 2, CPU: "a <fast> one",
		Commit: "abc", Rounds: 1, Figures: []figure{
			{Row: "HTTP/1.1 & more", Way: direct, Unit: "requests/s", Per: "request",
				Values: []float64{41276}, Ratios: []float64{1}, P50: []float64{88}, P99: []float64{1050},
				CPU: []float64{40}},
			{Row: "HTTP/1.1 & more", Way: intercepted, Unit: "requests/s", Per: "request",
				Values: []float64{20638}, Ratios: []float64{.5}, CPU: []float64{60}},
			{Row: "matched", Way: bareGRPC, Unit: "requests/s", Per: "request", Values: []float64{3000},
				Ratios: []float64{1}, CPU: []float64{60}},
		}}
	path := filepath.Join(t.TempDir(), "performance.md")
	require.NoError(t, os.WriteFile(path, []byte("# Title\n"+begin+"\nold\n"+end+"\ntail\n"), 0o644))
	require.NoError(t, writePage(path, r))
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(page), "| direct | 41,276 | 1.00 | 1.00 – 1.00 | 88 µs | 1.05 ms | 40 µs |")
	assert.Contains(t, string(page), "of two gRPC streams |")
	assert.NotContains(t, string(page), "old")
	assert.Regexp(t, "^# Title\n", string(page))
	assert.Regexp(t, "\ntail\n$", string(page))
	picture, err := os.ReadFile(strings.TrimSuffix(path, ".md") + ".svg")
	require.NoError(t, err)
	var svg struct {
		Rects []struct {
			Width string `xml:"width,attr"`
		} `xml:"rect"`
	}
	require.NoError(t, xml.Unmarshal(picture, &svg), "well-formed")
	assert.NotContains(t, string(picture), ">matched<", "it has nothing to be compared with")
	var bars []string
	for _, r := range svg.Rects {
		if strings.HasSuffix(r.Width, ".0") {
			bars = append(bars, r.Width)
		}
	}
	assert.Equal(t, []string{"480.0", "240.0"}, bars)
	require.NoError(t, os.WriteFile(path, []byte("no place"), 0o644))
	assert.ErrorContains(t, writePage(path, r), "no place for the figures")
}

func TestPictureOfTunnelsAndWaits(t *testing.T) {
	picture := draw(&results{
		Figures: []figure{
			{Row: "bulk", Way: rawTCP, Values: []float64{900}},
			{Row: "bulk", Way: byTunnel, Values: []float64{300, 400, 100}},
			{Row: "bulk", Way: portForward, Values: []float64{100, 200, 100}},
			{Row: "no forward", Way: byTunnel, Values: []float64{300}},
		},
		Waits: []waiting{{What: "`intercept` returns", Pods: 10, Values: []float64{50, 100}}},
	})
	assert.NoError(t, xml.Unmarshal([]byte(picture), new(struct{})), "well-formed")
	assert.Contains(t, picture, ">bulk<")
	assert.Contains(t, picture, ">2.00<", "the median of the rounds' ratios")
	assert.NotContains(t, picture, "no forward")
	assert.NotContains(t, picture, "Unmatched traffic")
	assert.Contains(t, picture, ">intercept returns, pods: 10<")
	assert.Contains(t, picture, ">100 ms<")
}

func TestExponentsAreOfSizesThatDifferInOneThing(t *testing.T) {
	at := func(intercepts, agents int, ms float64) growth.Point {
		v := []float64{ms}
		return growth.Point{
			Size: growth.Size{Intercepts: intercepts, Agents: agents}, Created: v, Active: v, Moved: v,
			Deleted: v, PodReady: v,
			ChangeCPU: 3, RestCPU: .01, Memory: usage.Memory{RSS: 64 << 20}, Started: 1500,
		}
	}
	points := []growth.Point{at(10, 100, 5), at(1000, 100, 50), at(1000, 10, 50), at(1000, 1000, 50),
		at(10_000, 100, 158.1)}
	lines := growthLines(points)
	require.Len(t, lines, 2)
	assert.Equal(t, "created 0.50, active 0.50, moved 0.50, deleted 0.50, pod runs 0.50, CPU of a change 0.00, CPU at rest 0.00, memory 0.00, start 0.00", lines[0].String())
	assert.Equal(t, "created 0.00, active 0.00, moved 0.00, deleted 0.00, pod runs 0.00, CPU of a change 0.00, CPU at rest 0.00, memory 0.00, start 0.00", lines[1].String())
	table := growthTable(points)
	assert.Contains(t, table, "| 10,000 | 100 | 158, 158 |")
	assert.Contains(t, table, "| exponent of | node agents | 0.00 |")
	columns := strings.Count(strings.Split(strings.TrimSpace(table), "\n")[2], "|")
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		assert.Equal(t, columns, strings.Count(line, "|"), line)
	}
	assert.Empty(t, growthTable(nil))
}
