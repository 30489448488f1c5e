// SPDX-License-Identifier: Apache-2.0

// Package report collects what tests have said on several kernels.
package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"sidestep.dev/sidestep/vmtests/guest"
)

// Outcomes of tests.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip"
)

// Test is the result of one test or, with an empty name, of all tests of a package.
type Test struct {
	Package, Name string
	Outcome       string
	Seconds       float64
	Output        []string
}

// Kernel is a run on one kernel.
type Kernel struct {
	Name     string // 6.1, or native
	Release  string // as uname has it
	Version  string // the package's
	Tests    []Test
	Problems []string // that are not a test's
	Done     bool     // the end has been reached
	Partial  bool     // some packages have not been run
}

// event is a line of test2json's output.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// Reader turns the output of guest.Run into a Kernel.
type Reader struct {
	Kernel  *Kernel
	Convert []string // command that turns a test's output into events: test2json
	Passed  func(Test)
	Log     io.Writer // gets all output, or nil

	section bytes.Buffer
	current string // package
}

// Read reads until the end.
func (r *Reader) Read(ctx context.Context, in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			if r.Log != nil {
				_, _ = io.WriteString(r.Log, line)
			}
			if err := r.line(ctx, line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read results: %w", err)
		}
	}
	return r.end(ctx, 0, "was cut short")
}

func (r *Reader) line(ctx context.Context, line string) error {
	word, text, ok := guest.ParseMark(line)
	if !ok {
		r.section.WriteString(line)
		return nil
	}
	switch word {
	case guest.Release:
		r.Kernel.Release = text
	case guest.Problem:
		r.Kernel.Problems = append(r.Kernel.Problems, text)
	case guest.Done:
		r.Kernel.Done = true
	case guest.Start:
		r.current = text
		r.section.Reset()
	case guest.End:
		failure, code, seconds := "", "", 0.0
		if _, err := fmt.Sscan(strings.TrimPrefix(text, r.current), &code, &seconds); err != nil ||
			code != "0" {
			failure = "ended with exit code " + code
		}
		return r.end(ctx, seconds, failure)
	}
	return nil
}

// end records the end of a package's tests. failure is what else is wrong with them.
func (r *Reader) end(ctx context.Context, seconds float64, failure string) error {
	if r.current == "" {
		return nil
	}
	tests, err := r.convert(ctx)
	if err != nil {
		return err
	}
	whole := slices.IndexFunc(tests, func(t Test) bool { return t.Name == "" })
	if whole < 0 {
		tests = append(tests, Test{Package: r.current, Outcome: Fail})
		whole = len(tests) - 1
	}
	// A failure without a failed test, such as a panic.
	if failure != "" {
		tests[whole].Outcome = Fail
		if !slices.ContainsFunc(tests, func(t Test) bool { return t.Name != "" && t.Outcome == Fail }) {
			tests[whole].Output = append(tests[whole].Output, r.current+" "+failure+"\n")
		}
	}
	tests[whole].Seconds = seconds
	r.Kernel.Tests = append(r.Kernel.Tests, tests...)
	if r.Passed != nil {
		r.Passed(tests[whole])
	}
	r.current = ""
	return nil
}

func (r *Reader) convert(ctx context.Context) ([]Test, error) {
	cmd := exec.CommandContext(ctx, r.Convert[0], append(r.Convert[1:], "-p", r.current)...)
	cmd.Stdin = &r.section
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(r.Convert, " "), err)
	}
	byName := map[string]*Test{}
	var order []string
	for line := range bytes.Lines(out) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read the events of test2json: %w", err)
		}
		t := byName[e.Test]
		if t == nil {
			t = &Test{Package: r.current, Name: e.Test, Outcome: Fail} // until it says otherwise
			byName[e.Test] = t
			order = append(order, e.Test)
		}
		switch e.Action {
		case Pass, Fail, Skip:
			t.Outcome, t.Seconds = e.Action, e.Elapsed
		case "output":
			t.Output = append(t.Output, e.Output)
		}
	}
	tests := make([]Test, 0, len(order))
	for _, name := range order {
		tests = append(tests, *byName[name])
	}
	return tests, nil
}

// release is the first two numbers of a version.
func numbers(version string) (major, minor int) {
	fields := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) >= 2 {
		major, _ = strconv.Atoi(fields[0])
		minor, _ = strconv.Atoi(fields[1])
	}
	return major, minor
}

// Older reports whether the kernel is older than a version such as 6.6.
func (k *Kernel) Older(than string) bool {
	major, minor := numbers(k.Release)
	a, b := numbers(than)
	return major < a || major == a && minor < b
}
