// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"regexp"
	"strings"

	"sidestep.dev/sidestep/bpf"
)

// excused matches reasons of skips that have nothing to do with the kernel: tests with real clients
// and servers, which machines do not have, or that take too long to run each time.
var excused = regexp.MustCompile(`executable file not found|two minutes`)

// Failure is something that must not be.
type Failure struct {
	What   string
	Output string
}

// Failures returns the kernel's failures, in the order in which they occurred. A skipped test
// counts as failed, unless the kernel is older than the test requires, or the reason is not the
// kernel.
func (k *Kernel) Failures() (all []Failure) {
	for _, p := range k.Problems {
		all = append(all, Failure{What: p})
	}
	for i, t := range k.Tests {
		switch {
		case t.Outcome == Fail && !k.failedBelow(t, k.Tests[i+1:]):
			all = append(all, Failure{t.Package + " " + t.Name, strings.Join(t.Output, "")})
		case t.Outcome == Skip && !k.mayLack(t):
			all = append(all, Failure{t.Package + " " + t.Name + " was skipped", strings.Join(t.Output, "")})
		}
	}
	if !k.Done {
		all = append(all, Failure{What: "the run has not reached its end"})
	}
	return all
}

// failedBelow reports whether the reason is a subtest of t or, if t is a whole package, one of its
// tests.
func (k *Kernel) failedBelow(t Test, later []Test) bool {
	among := later
	if t.Name == "" {
		among = k.Tests
	}
	own := ownOutput(t)
	for _, other := range among {
		below := t.Name == "" && other.Name != "" || t.Name != "" && strings.HasPrefix(other.Name, t.Name+"/")
		if other.Package == t.Package && below && other.Outcome == Fail {
			return own == ""
		}
	}
	return false
}

// ownOutput returns the output without the lines that only tell that a test begins or ends.
func ownOutput(t Test) string {
	var own []string
	for _, line := range t.Output {
		text := strings.TrimSpace(line)
		if text == "" || text == "FAIL" || strings.HasPrefix(text, "=== ") ||
			strings.HasPrefix(text, "--- ") || strings.HasPrefix(text, "exit status") {
			continue
		}
		own = append(own, line)
	}
	return strings.Join(own, "")
}

// mayLack reports whether a test may be skipped.
func (k *Kernel) mayLack(t Test) bool {
	if excused.MatchString(strings.Join(t.Output, "")) {
		return true
	}
	lacks, ok := bpf.ParseRequirement(strings.Join(t.Output, ""))
	return ok && lacks.Linux != "" && k.Older(lacks.Linux)
}

// Counts says how many tests have passed, failed and been skipped, without the tests that consist
// of others.
func (k *Kernel) Counts() (passed, failed, skipped int) {
	parents := map[string]bool{}
	for _, t := range k.Tests {
		for at := strings.LastIndexByte(t.Name, '/'); at > 0; at = strings.LastIndexByte(t.Name[:at], '/') {
			parents[t.Package+" "+t.Name[:at]] = true
		}
	}
	for _, t := range k.Tests {
		if t.Name == "" || parents[t.Package+" "+t.Name] {
			continue
		}
		switch t.Outcome {
		case Pass:
			passed++
		case Skip:
			skipped++
		default:
			failed++
		}
	}
	return passed, failed, skipped
}

// Summary is the kernel's run in a line.
func (k *Kernel) Summary() string {
	passed, failed, skipped := k.Counts()
	text := fmt.Sprintf("%s (%s): %d passed", k.Name, k.Release, passed)
	if failed > 0 {
		text += fmt.Sprintf(", %d failed", failed)
	}
	if skipped > 0 {
		text += fmt.Sprintf(", %d skipped", skipped)
	}
	if !k.Done {
		text += ", not ended"
	}
	return text
}
