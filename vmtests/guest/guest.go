// SPDX-License-Identifier: Apache-2.0

// Package guest runs test binaries one after the other and marks in their output where each begins
// and ends. A virtual machine's init does so, and so does a run without a machine: the output is
// the same.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// PlanFile is where init reads its Plan.
const PlanFile = "/plan.json"

// Plan is what a machine does before it powers off.
type Plan struct {
	Modules []string // files with kernel modules, in the order in which they can be loaded
	Tests   []Test
}

// Test is one test binary.
type Test struct {
	Package string
	Binary  string
	Dir     string // where it runs
	Args    []string
}

// mark begins the lines that are not a test's output.
const mark = "=vmtest= "

// The words after the mark.
const (
	Release = "release" // of the kernel
	Problem = "problem" // that is not a test's
	Start   = "start"   // PACKAGE
	End     = "end"     // PACKAGE EXIT-CODE SECONDS
	Done    = "done"    // everything in the plan has been run
)

// Say writes a mark. The empty line before it ends whatever a test has left unfinished.
func Say(out io.Writer, word, text string) {
	_, _ = fmt.Fprintf(out, "\n%s%s %s\n", mark, word, strings.ReplaceAll(text, "\n", " "))
}

// ParseMark returns the word and the text of a line that is a mark.
func ParseMark(line string) (word, text string, ok bool) {
	rest, ok := strings.CutPrefix(line, mark)
	word, text, _ = strings.Cut(strings.TrimSpace(rest), " ")
	return word, text, ok
}

// Run runs the tests of a plan. That one fails is told in out and is no error.
func Run(ctx context.Context, out io.Writer, tests []Test) error {
	for _, t := range tests {
		Say(out, Start, t.Package)
		cmd := exec.CommandContext(ctx, t.Binary, t.Args...)
		// CI makes tests that lack something fail instead of being skipped.
		cmd.Env = append(os.Environ(), "CI=1")
		cmd.Dir, cmd.Stdout, cmd.Stderr = t.Dir, out, out
		begin := time.Now()
		err := cmd.Run()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			Say(out, Problem, fmt.Sprintf("run the tests of %s: %v", t.Package, err))
		}
		Say(out, End, fmt.Sprintf("%s %d %.1f", t.Package, cmd.ProcessState.ExitCode(),
			time.Since(begin).Seconds()))
	}
	Say(out, Done, "")
	return nil
}
