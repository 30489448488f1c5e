// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/bench/growth"
)

// growthRow is the name of the row about many intercepts and node agents.
const growthRow = "growth"

// growthSizes returns sizes along two lines, which meet in the middle. Intercepts are in ascending
// order.
func growthSizes(quick bool) []growth.Size {
	if quick {
		return []growth.Size{{Intercepts: 10, Agents: 10}, {Intercepts: 1000, Agents: 10},
			{Intercepts: 1000, Agents: 100}}
	}
	return []growth.Size{
		{Intercepts: 10, Agents: 100}, {Intercepts: 1000, Agents: 100}, {Intercepts: 1000, Agents: 10},
		{Intercepts: 1000, Agents: 1000},
		{Intercepts: 10_000, Agents: 100},
	}
}

// grow measures the manager with ever more to do.
func (b *bench) grow(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "sidestep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := linkPrograms(dir); err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	changes := 25
	if b.quick {
		changes = 10
	}
	began := time.Now()
	say := func(p *growth.Point) {
		fmt.Printf("  %-36s %s\n", p.Size, describePoint(p))
		b.took(growthRow+" to "+p.Size.String(), began)
		began = time.Now()
	}
	fmt.Println("manager with many intercepts and node agents: until a node agent hears of a change (p50, p95), CPU, memory")
	b.results.Growth, err = growth.Run(ctx, growth.Config{
		Root: root, Assets: dir, Manager: filepath.Join(root, "bin/sidestep-manager"), Changes: changes,
		Rest:  2 * time.Second,
		Sizes: growthSizes(b.quick), Say: say,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", growthRow, err)
	}
	for _, l := range growthLines(b.results.Growth) {
		fmt.Printf("  grows with %s: %s\n", l.with, l)
	}
	return nil
}

// linkPrograms puts the API server that tests/cluster has built, and its etcd, where they are
// looked for.
func linkPrograms(dir string) error {
	cache := os.Getenv("SIDESTEP_CLUSTER_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		cache = filepath.Join(user, "sidestep-cluster")
	}
	for _, program := range []string{"etcd-*/etcd", "kubernetes-*/kube-apiserver", "kubernetes-*/kubectl"} {
		found, err := filepath.Glob(filepath.Join(cache, program))
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("there is no %s: run make cluster-up once, which builds it",
				filepath.Join(cache, program))
		}
		if err := os.Symlink(found[len(found)-1], filepath.Join(dir, filepath.Base(program))); err != nil {
			return err
		}
	}
	return nil
}

func describePoint(p *growth.Point) string {
	var t strings.Builder
	for _, c := range growthTimes {
		v := c.values(p)
		fmt.Fprintf(&t, "%s %.0f, %.0f ms; ", c.name, median(v), quantile(v, .95))
	}
	fmt.Fprintf(&t, "CPU %.1f ms a change, %.1f %% at rest; %d MB; all told %.1f s after its start",
		p.ChangeCPU, 100*p.RestCPU, p.Memory.RSS>>20, p.Started/1000)
	return t.String()
}

// growthTimes are the changes that are timed.
var growthTimes = []struct {
	name   string
	values func(*growth.Point) []float64
}{
	{"created", func(p *growth.Point) []float64 { return p.Created }},
	{"active", func(p *growth.Point) []float64 { return p.Active }},
	{"moved", func(p *growth.Point) []float64 { return p.Moved }},
	{"deleted", func(p *growth.Point) []float64 { return p.Deleted }},
	{"pod runs", func(p *growth.Point) []float64 { return p.PodReady }},
}

// growthLine is how the figures grow along one line of sizes.
type growthLine struct {
	with      string // what grows
	exponents []exponent
}

type exponent struct {
	of    string
	value float64
}

func (l growthLine) String() string {
	words := make([]string, len(l.exponents))
	for i, e := range l.exponents {
		words[i] = fmt.Sprintf("%s %.2f", e.of, e.value)
	}
	return strings.Join(words, ", ")
}

// growthLines returns the exponents for the sizes that differ in one dimension only.
func growthLines(points []growth.Point) (lines []growthLine) {
	for _, axis := range []struct {
		name         string
		grows, stays func(growth.Size) int
	}{
		{"intercepts", func(s growth.Size) int { return s.Intercepts },
			func(s growth.Size) int { return s.Agents }},
		{"node agents", func(s growth.Size) int { return s.Agents },
			func(s growth.Size) int { return s.Intercepts }},
	} {
		lines = append(lines, lineOf(axis.name, longest(points, axis.stays), axis.grows))
	}
	return lines
}

// longest returns the largest set of points that have the same value in common.
func longest(points []growth.Point, common func(growth.Size) int) (most []growth.Point) {
	with := map[int][]growth.Point{}
	for _, p := range points {
		n := common(p.Size)
		if with[n] = append(with[n], p); len(with[n]) > len(most) {
			most = with[n]
		}
	}
	return most
}

func lineOf(name string, points []growth.Point, grows func(growth.Size) int) growthLine {
	l := growthLine{with: name}
	add := func(of string, least float64, value func(*growth.Point) float64) {
		var sizes, values []float64
		for i := range points {
			sizes, values = append(sizes, float64(grows(points[i].Size))), append(values, value(&points[i]))
		}
		l.exponents = append(l.exponents,
			exponent{of, math.Round(100*growth.Exponent(sizes, values, least))/100 + 0})
	}
	for _, c := range growthTimes {
		add(c.name, .1, func(p *growth.Point) float64 { return median(c.values(p)) })
	}
	add("CPU of a change", .01, func(p *growth.Point) float64 { return p.ChangeCPU })
	add("CPU at rest", .001, func(p *growth.Point) float64 { return p.RestCPU })
	add("memory", 1, func(p *growth.Point) float64 { return float64(p.Memory.RSS) })
	add("start", 1, func(p *growth.Point) float64 { return p.Started })
	return l
}

// growthTable is the row on the page.
func growthTable(points []growth.Point) string {
	var t strings.Builder
	if len(points) == 0 {
		return ""
	}
	t.WriteString("\n**A manager with ever more to do**, p50 and p95 in milliseconds\n\n| intercepts | node agents |")
	for _, c := range growthTimes {
		fmt.Fprintf(&t, " %s |", c.name)
	}
	t.WriteString(" CPU of a change | CPU at rest | memory | start |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, p := range points {
		fmt.Fprintf(&t, "| %s | %s |", thousands(float64(p.Intercepts)), thousands(float64(p.Agents)))
		for _, c := range growthTimes {
			v := c.values(&p)
			fmt.Fprintf(&t, " %.0f, %.0f |", median(v), quantile(v, .95))
		}
		fmt.Fprintf(&t, " %.1f ms | %.1f %% | %d MB | %.1f s |\n", p.ChangeCPU, 100*p.RestCPU,
			p.Memory.RSS>>20, p.Started/1000)
	}
	for _, l := range growthLines(points) {
		fmt.Fprintf(&t, "| exponent of | %s |", l.with)
		for _, e := range l.exponents {
			fmt.Fprintf(&t, " %.2f |", e.value)
		}
		t.WriteString("\n")
	}
	return t.String()
}
