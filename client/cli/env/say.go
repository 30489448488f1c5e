// SPDX-License-Identifier: Apache-2.0

package env

import (
	"fmt"
	"strings"

	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/client/cli/progress"
)

// Write writes a record to standard output.
func (e *Env) Write(format string, record any) error { return output.Write(e.Stdout, format, record) }

// Warning is the prefix of a line of the daemon's progress that stays on the screen.
const Warning = "warning: "

// Paint returns the colours for a stream.
func (e *Env) Paint(stream any) layout.Paint {
	_, terminal := e.IsTerminal(stream)
	return layout.Paint{On: terminal && e.Getenv("NO_COLOR") == "" && e.Getenv("TERM") != "dumb"}
}

// Line is the progress of a command.
func (e *Env) Line(g *Global) *progress.Line {
	width := func() int { columns, _ := e.IsTerminal(e.Stderr); return columns }
	style := progress.None
	_, terminal := e.IsTerminal(e.Stderr)
	switch {
	case g.Quiet || g.Progress == "quiet":
	case g.Progress == "plain":
		style = progress.Plain
	case g.Progress == "tty", terminal && e.Getenv("TERM") != "dumb":
		style = progress.Spinner
	}
	return progress.New(e.Stderr, style, width)
}

// Note prints what happened besides the result.
func (e *Env) Note(g *Global, format string, args ...any) {
	if !g.Quiet {
		fmt.Fprintln(e.Stderr, e.Text(fmt.Sprintf(format, args...)))
	}
}

// Warn prints a warning. A text from the daemon may have the prefix already.
func (e *Env) Warn(g *Global, text string) {
	for strings.HasPrefix(text, Warning) {
		text = strings.TrimPrefix(text, Warning)
	}
	if !g.Quiet {
		fmt.Fprintf(e.Stderr, "%s %s\n", e.Paint(e.Stderr).Odd("warning:"), e.Text(text))
	}
}

// Say prints what a command without a record has done.
func (e *Env) Say(g *Global, format string, args ...any) {
	switch {
	case g.Format != output.FormatText:
		fmt.Fprintf(&g.Said, format+"\n", args...)
	case !g.Quiet:
		fmt.Fprintln(e.Stdout, e.Text(fmt.Sprintf(format, args...)))
	}
}
