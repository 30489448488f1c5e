// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/internal/reason"
)

// afterwards is how long may be spent on undoing what a command did, after the command or its user
// has had enough.
const afterwards = 15 * time.Second

func newConnectCmd(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "connect [flags] [-- COMMAND [ARGUMENT...]]",
		Short:   "Connect to a cluster",
		GroupID: groupSession,
		Long: `Connect to a cluster, as kubectl would with the same flags, and stay connected until 'quit'.

The other commands connect by themselves when they need to. With a command after --, the command is run and the session
ends with it, unless there was one before.`,
		Example: fmt.Sprintf(`  # The cluster of the current context
  %[1]s connect

  # Another one; workloads are then looked for in its namespace shop
  %[1]s connect --context staging --namespace shop

  # Only as long as a program runs
  %[1]s connect -- ./try-it.sh`, e.name),
		Args:              onlyAfterDash,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.runConnect(cmd, g, args)
		},
	}
}

// onlyAfterDash refuses words that are not part of a command after --.
func onlyAfterDash(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
		return usagef("unexpected argument %s — put a command to be run after --", args[0])
	}
	return nil
}

func (e *env) runConnect(cmd *cobra.Command, g *global, args []string) error {
	ctx := cmd.Context()
	s, err := e.started(ctx, g)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if s, err = e.sameVersion(ctx, g, s); err != nil {
		return err
	}
	e.news(ctx, s)
	before, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	st, err := e.connect(ctx, g, s, g.namespace)
	if err != nil {
		return err
	}
	if format := outputOf(cmd); format != formatText {
		if err := e.write(format, layout.StatusRecord(st, nil)); err != nil {
			return err
		}
	} else {
		e.say(g, "%s", connectedTo(st))
	}
	e.skew(g, st)
	if len(args) == 0 {
		return nil
	}
	if before.GetSession() != "" { // it was there before, and stays
		return e.runFree(ctx, args)
	}
	return e.runHeld(ctx, g, s, "", program{args: args}, func(ctx context.Context, s *session) error {
		_, err := s.Disconnect(ctx, &daemonpb.Empty{})
		return e.warnLeft(g, err)
	})
}

func newQuitCmd(e *env, g *global) *cobra.Command {
	var stop, root, user bool
	cmd := &cobra.Command{
		Use:     "quit",
		Short:   "Disconnect from the cluster and remove what was intercepted",
		GroupID: groupSession,
		Long: `Disconnect from the cluster. All intercepts of this laptop end, and their workloads get all of their traffic again.
The daemon stays, idle, unless --stop-daemons says otherwise.`,
		Example: fmt.Sprintf(`  # Disconnect, and end the daemon too
  %[1]s quit -s`, e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.runQuit(cmd.Context(), g, stop || root || user)
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

func (e *env) runQuit(ctx context.Context, g *global, stop bool) error {
	s, err := e.running(ctx, g)
	if err != nil {
		return err
	}
	if s == nil {
		e.say(g, "Not connected")
		return nil
	}
	defer s.Close()
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	s.line.Set("disconnecting")
	defer s.line.Close()
	if stop {
		if err := e.stopDaemon(ctx, g, s); err != nil {
			return err
		}
		s.line.Close()
		e.say(g, "%s Daemon quitting...done", e.brand())
		return nil
	}
	if st.GetSession() == "" {
		s.line.Close()
		e.say(g, "Not connected")
		return nil
	}
	_, err = s.Disconnect(ctx, &daemonpb.Empty{})
	s.line.Close()
	if err := e.warnLeft(g, err); err != nil {
		return err
	}
	e.say(g, "Disconnected")
	return nil
}

// warnLeft makes a warning of the error that says that the session has ended and the cluster could
// not be told.
func (e *env) warnLeft(g *global, err error) error {
	if reason.Of(err) != reason.InterceptsLeft {
		return err
	}
	e.warn(g, sentence(err))
	return nil
}

// stopDaemon ends the daemon and returns when its socket is gone, so that the next command does not
// meet a dying one.
func (e *env) stopDaemon(ctx context.Context, g *global, s *session) error {
	_, err := s.Quit(ctx, &daemonpb.Empty{})
	if err := e.warnLeft(g, err); err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, afterwards)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, closer, err := e.dial(deadline)
		if err != nil {
			return ctx.Err()
		}
		_ = closer.Close()
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the daemon was told to end and has not within %s — see its log in ~/.cache/sidestep/logs", afterwards)
		case <-tick.C:
		}
	}
}

func newDaemonCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:               foregroundCommand,
		Short:             "Run the daemon in the foreground",
		Hidden:            true,
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return e.foreground(cmd.Context()) },
	}
}
