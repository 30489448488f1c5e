// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"slices"
	"strings"
)

// Similar returns at most three names that the user may have meant, the best first.
func Similar(name string, known []string) []string {
	type candidate struct {
		name     string
		distance int
	}
	var candidates []candidate
	for _, k := range known {
		d := distance(name, k)
		near := d <= max(1, len(name)/3)
		part := len(name) >= 3 && (strings.Contains(k, name) || strings.Contains(name, k) && len(k) >= 3)
		if near || part {
			candidates = append(candidates, candidate{k, d})
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return a.distance - b.distance })
	var similar []string
	for _, c := range candidates[:min(3, len(candidates))] {
		similar = append(similar, c.name)
	}
	return similar
}

// distance returns the number of insertions, deletions, replacements and swaps of neighbours that
// turn a into b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
