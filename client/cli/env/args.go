// SPDX-License-Identifier: Apache-2.0

package env

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/output"
)

// UnknownCommand is the error of the root for words that are not a command.
func UnknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("invalid subcommand %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return output.Usagef("%s", text).
			Advise("did you mean %s?", strings.Join(near, " or "))
	}
	return output.Usagef("%s", text).
		Advise("`%s --help` lists them", cmd.CommandPath())
}

// Exactly checks the number of arguments of a command.
func Exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return output.Usagef("%s is missing", what).
				Advise("usage: %s", cmd.UseLine())
		case len(args) > n:
			return output.Usagef("too many arguments: %s", strings.Join(args[n:], " ")).
				Advise("usage: %s", cmd.UseLine())
		}
		return nil
	}
}
