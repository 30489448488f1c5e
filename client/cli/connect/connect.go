// SPDX-License-Identifier: Apache-2.0

// Package connect begins and ends the session with a cluster.
package connect

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
)

// New returns the command connect.
func New(e *env.Env, g *env.Global) *cobra.Command {
	return &cobra.Command{
		Use:   "connect [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Connect to a cluster",
		Long: `Connect to a cluster, as kubectl would with the same flags, and stay connected until 'quit'.

The other commands connect by themselves when they need to. With a command after --, the command is run and the session
ends with it, unless there was one before.`,
		Example: fmt.Sprintf(`  # The cluster of the current context
  %[1]s connect

  # Another one; workloads are then looked for in its namespace shop
  %[1]s connect --context staging --namespace shop

  # Only as long as a program runs
  %[1]s connect -- ./try-it.sh`, e.Name),
		Args:              onlyAfterDash,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConnect(e, cmd, g, args)
		},
	}
}

// onlyAfterDash refuses arguments that are not part of a command after --.
func onlyAfterDash(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
		return output.Usagef("unexpected argument %s", args[0]).
			Advise("put a command to be run after --")
	}
	return nil
}

func runConnect(e *env.Env, cmd *cobra.Command, g *env.Global, args []string) error {
	ctx := cmd.Context()
	s, err := e.Started(ctx, g)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if s, err = e.SameVersion(ctx, g, s); err != nil {
		return err
	}
	e.News(ctx, s)
	before, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	if err := hasNamespace(ctx, e, g); err != nil {
		return err
	}
	st, err := e.Connect(ctx, g, s, g.Namespace)
	if err != nil {
		return err
	}
	if format := output.OutputOf(cmd); format != output.FormatText {
		if err := e.Write(format, layout.StatusRecord(st, nil)); err != nil {
			return err
		}
	} else {
		e.Say(g, "%s", env.ConnectedTo(st))
	}
	e.Skew(g, st)
	if len(args) == 0 {
		return nil
	}
	if before.GetSession() != "" { // it existed before, and stays
		return e.RunFree(ctx, args)
	}
	return e.RunHeld(ctx, g, s, "", env.Program{Args: args}, func(ctx context.Context, s *env.Daemon) error {
		_, err := s.Disconnect(ctx, &daemonpb.Empty{})
		return e.WarnLeft(g, err)
	})
}

// namespacePatience bounds the request whether a namespace exists.
const namespacePatience = 5 * time.Second

// hasNamespace returns an error if --namespace names a namespace that does not exist: later
// everything in it would look like a missing right. The daemon reports whatever else is wrong.
func hasNamespace(ctx context.Context, e *env.Env, g *env.Global) error {
	if g.Namespace == "" {
		return nil
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, namespacePatience)
	defer cancel()
	return c.HasNamespace(ctx, g.Namespace)
}

// NewQuit returns the command quit.
func NewQuit(e *env.Env, g *env.Global) *cobra.Command {
	var stop, root, user bool
	cmd := &cobra.Command{
		Use:   "quit",
		Short: "Disconnect from the cluster and remove what was intercepted",
		Long: `Disconnect from the cluster. All intercepts of this laptop end, and their workloads get all of their traffic again.
The daemon stays, idle, unless --stop-daemons says otherwise.`,
		Example: fmt.Sprintf(`  # Disconnect, and end the daemon too
  %[1]s quit -s`, e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runQuit(cmd.Context(), e, g, stop || root || user)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&stop, "stop-daemons", "s", false, "End the daemon too")
	flags.BoolVarP(&root, "root-daemon", "r", false, "Same as --stop-daemons")
	flags.BoolVarP(&user, "user-daemon", "u", false, "Same as --stop-daemons")
	_ = flags.MarkHidden("root-daemon")
	_ = flags.MarkHidden("user-daemon")
	return cmd
}

func runQuit(ctx context.Context, e *env.Env, g *env.Global, stop bool) error {
	s, err := e.Running(ctx, g)
	if err != nil {
		return err
	}
	if s == nil {
		e.Say(g, "Not connected")
		return nil
	}
	defer s.Close()
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	s.Line.Set("disconnecting")
	defer s.Line.Close()
	if stop {
		if err := e.StopDaemon(ctx, g, s); err != nil {
			return err
		}
		s.Line.Close()
		e.Say(g, "%s Daemon quitting...done", e.Brand())
		return nil
	}
	if st.GetSession() == "" {
		s.Line.Close()
		e.Say(g, "Not connected")
		return nil
	}
	_, err = s.Disconnect(ctx, &daemonpb.Empty{})
	s.Line.Close()
	if err := e.WarnLeft(g, err); err != nil {
		return err
	}
	e.Say(g, "Disconnected")
	return nil
}

// NewForeground returns the hidden command that runs the daemon.
func NewForeground(e *env.Env) *cobra.Command {
	return &cobra.Command{
		Use:               env.ForegroundCommand,
		Short:             "Run the daemon in the foreground",
		Hidden:            true,
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return e.Foreground(cmd.Context()) },
	}
}
