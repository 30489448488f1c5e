// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The tables stand between these lines of the page.
const (
	begin = "<!-- figures: written by make bench -->"
	end   = "<!-- end of figures -->"
)

// writePage puts the figures into a page, and a picture of them, with the page's name and the
// ending .svg, beside it.
func writePage(path string, r *results) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, found := strings.Cut(string(old), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s has no place for the figures, which is between %q and %q", path, begin, end)
	}
	picture := strings.TrimSuffix(path, filepath.Ext(path)) + ".svg"
	if err := os.WriteFile(picture, []byte(draw(r)), 0o644); err != nil {
		return err
	}
	text := head + begin + "\n" + tables(r, filepath.Base(picture)) + end + tail
	return os.WriteFile(path, []byte(text), 0o644)
}

func tables(r *results, picture string) string {
	var t strings.Builder
	fmt.Fprintf(&t, "\nLinux %s, %d CPUs (%s), commit %s, %s; %d rounds of %.2g s.\n", r.Kernel, r.CPUs,
		r.CPU, r.Commit, r.Time[:10], r.Rounds, r.Seconds)
	fmt.Fprintf(&t, "\n![Rates compared with direct](%s)\n", picture)
	row := ""
	for _, f := range r.Figures {
		if f.Row != row {
			row = f.Row
			fmt.Fprintf(&t, "\n**%s**\n\n| way | %s | of %s | from – to | p50 | p99 | CPU for one %s |\n|---|---|---|---|---|---|---|\n", row, f.Unit, shorter(f.Way), f.Per)
		}
		low, high := quantile(f.Ratios, 0), quantile(f.Ratios, 1)
		fmt.Fprintf(&t, "| %s | %s | %.2f | %.2f – %.2f | %s | %s | %s |\n", f.Way,
			thousands(median(f.Values)), median(f.Ratios), low, high,
			micros(f.P50), micros(f.P99), micros(f.CPU))
	}
	if len(r.Waits) > 0 {
		fmt.Fprintf(&t, "\n**How long a person waits**\n\n| for | pods | p50 | p95 | times |\n|---|---|---|---|---|\n")
		for _, w := range r.Waits {
			fmt.Fprintf(&t, "| %s | %d | %.0f ms | %.0f ms | %d |\n", w.What, w.Pods, median(w.Values),
				quantile(w.Values, .95), len(w.Values))
		}
	}
	if len(r.Notices) > 0 {
		t.WriteString("\n**What other users of the workload notice meanwhile**, 50 new connections a second\n\n")
	}
	for _, n := range r.Notices {
		fmt.Fprintf(&t, "* pods: %d: %s\n", n.Pods, n)
	}
	t.WriteString(restTable(r))
	t.WriteString(growthTable(r.Growth))
	return t.String()
}

// shorter returns what the others are compared with, for the head of a column.
func shorter(way string) string {
	name, _, _ := strings.Cut(way, ",")
	return name
}

// thousands writes 41276 as 41,276.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
