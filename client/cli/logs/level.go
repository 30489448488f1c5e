// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/output"
)

// levels are the words for log levels, those of Telepresence too.
var levels = map[string]string{"error": "error", "warning": "warn", "warn": "warn", "info": "info",
	"debug": "debug", "trace": "debug"}

// NewLevel returns the command loglevel.
//
// Long: it is the help text and the list of flags.
func NewLevel(e *env.Env, g *env.Global) *cobra.Command {
	var duration time.Duration
	var local, remote bool
	cmd := &cobra.Command{
		Use:   "loglevel LEVEL",
		Short: "Change what the daemon logs, for a while",
		Long: `Change what the daemon logs to error, warning, info or debug, and back after --duration. What the traffic manager and the node
agents log is the chart's value logLevel, which whoever installs it sets.`,
		Example: fmt.Sprintf(`  # Half an hour of details
  %[1]s loglevel debug

  # Until the daemon ends
  %[1]s loglevel debug --duration 0s

  # In the cluster
  %[1]s helm upgrade --reuse-values --set logLevel=debug`, e.Name),
		Args:              env.Exactly(1, "the level"),
		ValidArgsFunction: env.First(env.Words("error", "warning", "info", "debug")),
		RunE: func(cmd *cobra.Command, args []string) error {
			level, ok := levels[strings.ToLower(args[0])]
			switch {
			case !ok:
				return output.Usagef("there is no log level %q", args[0]).
					Advise("use error, warning, info or debug")
			case duration < 0:
				return output.Usagef("--duration %s must not be negative", duration)
			case remote && local:
				return output.Usagef("--local-only and --remote-only contradict each other").
					Advise("leave one out")
			case remote:
				return output.Unavailable("--remote-only is",
					fmt.Sprintf("use `%s helm upgrade --reuse-values --set logLevel=%s`", e.Name, level))
			}
			s, err := e.Started(cmd.Context(), g)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := e.OtherVersion(s); err != nil {
				return err
			}
			if _, err := s.SetLogLevel(cmd.Context(),
				&daemonpb.LogLevelRequest{Level: level, DurationMs: duration.Milliseconds()}); err != nil {
				return err
			}
			until := "until it ends"
			if duration > 0 {
				until = "for " + duration.String()
			}
			e.Say(g, "The daemon's log level is %s %s", level, until)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.DurationVarP(&duration, "duration", "d", 30*time.Minute, "How long; 0s means until the daemon ends")
	flags.BoolVarP(&local, "local-only", "l", false, "Change only the daemon's, as is done anyway")
	flags.BoolVarP(&remote, "remote-only", "r", false, "Change only the traffic manager's")
	_ = flags.MarkHidden("local-only")
	_ = flags.MarkHidden("remote-only")
	return cmd
}
