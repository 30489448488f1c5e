// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/internal/version"
)

func newStatusCmd(e *env, g *global) *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the daemons, the session and its intercepts",
		GroupID: groupSession,
		Example: fmt.Sprintf(
			"  # With a line for each pod that steers traffic, and for each node\n  %[1]s status --wide", e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := e.status(cmd.Context(), g)
			if err != nil {
				return err
			}
			var told *daemonpb.NodeAgentsReply
			if wide && st.GetConnected() {
				if told, err = e.nodeAgents(cmd.Context(), g); err != nil {
					return err
				}
			}
			if format := outputOf(cmd); format != formatText {
				return e.write(format, layout.StatusRecord(st, told))
			}
			text := layout.StatusText{
				Brand: e.brand(), Version: e.version, Protocol: version.Protocol, Wide: wide,
				Paint: e.paint(e.stdout), Told: told,
			}
			if err := text.Write(e.stdout, st); err != nil {
				return err
			}
			if v := st.GetDaemon().GetVersion(); st != nil && v != e.version {
				e.note(g, "The running daemon is %s and this is %s %s: run `%s quit -s` to replace it.",
					v, e.name, e.version, e.name)
			}
			if st.GetConnected() {
				e.skew(g, st)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&wide, "wide", false, "Show each intercept's workload and pods, and the node agents")
	cmd.Flags().BoolP("json", "j", false, "Same as --output json")
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}

// status is nil when no daemon runs.
func (e *env) status(ctx context.Context, g *global) (*daemonpb.StatusInfo, error) {
	s, err := e.running(ctx, g)
	if s == nil || err != nil {
		return nil, err
	}
	defer s.Close()
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return nil, err
	}
	st.Message = e.renamed(st.GetMessage())
	if len(st.GetEnded()) > 0 { // all of it is shown here, so that nothing is news any more
		_, _ = s.Ended(ctx, &daemonpb.Empty{})
	}
	return st, nil
}

// nodeAgents is what the manager knows of the nodes; nil when nobody can tell.
func (e *env) nodeAgents(ctx context.Context, g *global) (*daemonpb.NodeAgentsReply, error) {
	s, err := e.running(ctx, g)
	if s == nil || err != nil {
		return nil, err
	}
	defer s.Close()
	agents, err := s.NodeAgents(ctx, &daemonpb.Empty{})
	switch status.Code(err) {
	case codes.OK:
		return agents, nil
	case codes.Unimplemented: // a daemon of an older version
		return nil, nil
	}
	// The rest of the status is worth having all the same.
	e.note(g, "The node agents are not known: %s", status.Convert(err).Message())
	return nil, nil
}

// versions is what programs read about who is which version.
type versions struct {
	Client         string `json:"client"`
	UserDaemon     string `json:"user_daemon,omitempty"`
	TrafficManager string `json:"traffic_manager,omitempty"`
}

func newVersionCmd(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of client, daemon and traffic manager",
		Example: fmt.Sprintf(
			"  %[1]s version\n\n  # For a program\n  %[1]s version --output json", e.name),
		GroupID:           groupOther,
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: e.version}
			// A daemon that has died is not started for this.
			if s, err := e.reach(cmd.Context(), g); err == nil {
				defer s.Close()
				st, err := s.Status(cmd.Context(), &daemonpb.Empty{})
				if err != nil {
					return err
				}
				v.UserDaemon = st.GetDaemon().GetVersion()
				if st.GetConnected() {
					v.TrafficManager = st.GetManagerVersion()
				}
			}
			if format := outputOf(cmd); format != formatText {
				return e.write(format, v)
			}
			b := &layout.Block{}
			b.Add("Client", v.Client)
			b.Add("Root Daemon", "not running")
			b.Add("User Daemon", orElse(v.UserDaemon, "not running"))
			b.Add("Traffic Manager", orElse(v.TrafficManager, "not connected"))
			_, err := b.WriteTo(e.stdout)
			return err
		},
	}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
