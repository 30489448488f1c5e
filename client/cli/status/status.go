// SPDX-License-Identifier: Apache-2.0

// Package status shows the daemons, the session and the versions.
package status

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/version"
)

// New returns the command status.
func New(e *env.Env, g *env.Global) *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the daemons, the session and its intercepts",
		Example: fmt.Sprintf(
			"  # With a line for each pod that steers traffic, and for each node\n  %[1]s status --wide", e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := Of(cmd.Context(), e, g)
			if err != nil {
				return err
			}
			told, err := tell(cmd.Context(), e, g, st, wide)
			if err != nil {
				return err
			}
			if format := output.OutputOf(cmd); format != output.FormatText {
				return e.Write(format, layout.StatusRecord(st, told))
			}
			text := layout.StatusText{
				Brand: e.Brand(), Version: e.Version, Protocol: version.Protocol, Wide: wide,
				Paint: e.Paint(e.Stdout), Told: told, Now: e.Now(),
			}
			if err := text.Write(e.Stdout, st); err != nil {
				return err
			}
			if v := st.GetDaemon().GetVersion(); st != nil && v != e.Version {
				e.Note(g, "The running daemon is %s and this is %s %s: run `%s quit -s` to replace it.",
					v, e.Name, e.Version, e.Name)
			}
			if st.GetConnected() {
				e.Skew(g, st)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&wide, "wide", false, "Show each intercept's workload and pods, and the node agents")
	cmd.Flags().BoolP("json", "j", false, "Same as --output json")
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}

// Of returns the status of the daemon, or nil if none runs.
func Of(ctx context.Context, e *env.Env, g *env.Global) (*daemonpb.StatusInfo, error) {
	s, err := e.Running(ctx, g)
	if s == nil || err != nil {
		return nil, err
	}
	defer s.Close()
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return nil, err
	}
	st.Message = e.Renamed(st.GetMessage())
	if len(st.GetEnded()) > 0 { // all of it is shown here, so it is not news any more
		_, _ = s.Ended(ctx, &daemonpb.Empty{})
	}
	return st, nil
}

// countPatience bounds the wait for counts, which are optional.
const countPatience = time.Second

// tell adds what the manager has counted for the intercepts and, if the status is wide, what it
// knows of the nodes.
func tell(ctx context.Context, e *env.Env, g *env.Global, st *daemonpb.StatusInfo,
	wide bool) (*daemonpb.NodeAgentsReply, error) {
	switch {
	case !st.GetConnected():
		return nil, nil
	case wide:
		return NodeAgents(ctx, e, g)
	case len(st.GetIntercepts()) == 0:
		return nil, nil
	}
	s, err := e.Running(ctx, g)
	if s == nil || err != nil {
		return nil, err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	told, err := s.NodeAgents(ctx, &daemonpb.Empty{})
	if err != nil {
		return nil, nil
	}
	return &daemonpb.NodeAgentsReply{Traffic: told.GetTraffic()}, nil
}

// NodeAgents returns what the manager knows of the nodes, nil if it cannot tell.
func NodeAgents(ctx context.Context, e *env.Env, g *env.Global) (*daemonpb.NodeAgentsReply, error) {
	s, err := e.Running(ctx, g)
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
	// The rest of the status is useful all the same.
	e.Note(g, "The node agents are not known: %s", status.Convert(err).Message())
	return nil, nil
}
