// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// Exit codes besides 0 and those of programs that are run after --.
const (
	exitError = 1
	exitUsage = 2
)

// fail prints the error that ended cmd and returns the exit code.
func fail(ctx context.Context, e *env.Env, g *env.Global, cmd *cobra.Command, err error) int {
	var program output.ProgramError
	if errors.As(err, &program) {
		return int(program)
	}
	code := exitError
	text := e.Advise(output.Sentence(err), err)
	var sig output.SignalError
	var usage output.UsageError
	switch {
	case errors.As(context.Cause(ctx), &sig) && output.Canceled(err):
		code, text = 128+int(sig), "interrupted"
	case errors.As(err, &usage):
		code = exitUsage
		if !output.HasAdvice(err) {
			text += fmt.Sprintf("%ssee `%s --help`", reason.Dash, cmd.CommandPath())
		}
	}
	fmt.Fprintf(e.Stderr, "%s: %s %s\n", cmd.CommandPath(), e.Paint(e.Stderr).Bad("error:"),
		e.Text(text))
	if g.Format != output.FormatText {
		_ = e.Write(g.Format, output.Failure(cmd, e.Renamed(text), reason.Of(err)))
	}
	return code
}
