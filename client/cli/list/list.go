// SPDX-License-Identifier: Apache-2.0

// Package list lists workloads and their intercepts.
package list

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/helm"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

type flags struct {
	allNamespaces, intercepted, wiretapped, interceptable, yes bool
}

// New returns the command list.
func New(e *env.Env, g *env.Global) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the workloads that can be intercepted, and those that are",
		Long: `List the workloads of a namespace: which are ready to be intercepted, which are intercepted and how, and which cannot
be and why. Connects if need be, and installs the traffic manager if the cluster has none.`,
		Example: fmt.Sprintf(`  %[1]s list --namespace shop

  # What this laptop intercepts, in all namespaces
  %[1]s list --intercepts --all-namespaces

  # In a script, on a cluster that may not have the traffic manager yet
  %[1]s list --yes --output json

  # The list as one line of JSON, and again whenever it changes
  %[1]s list --output json-stream`, e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return run(e, cmd, g, f) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "List the workloads of all namespaces")
	flags.BoolVarP(&f.intercepted, "intercepts", "i", false, "List only what this laptop intercepts")
	flags.BoolVarP(&f.wiretapped, "wiretaps", "t", false,
		"List only what this laptop wiretaps; with --intercepts, both")
	flags.BoolVarP(&f.interceptable, "only-interceptable", "o", false, "List only what can be intercepted")
	flags.BoolVarP(&f.yes, "yes", "y", false, "Install the traffic manager without asking")
	flags.BoolP("agents", "a", false,
		"There are no agents in workloads: all that can be intercepted are listed")
	flags.Bool("debug", false, "Accepted")
	flags.BoolP("json", "j", false, "Same as --output json")
	for _, name := range []string{"agents", "debug", "json"} {
		_ = flags.MarkHidden(name)
	}
	return cmd
}

func run(e *env.Env, cmd *cobra.Command, g *env.Global, f flags) error {
	if f.allNamespaces && g.Namespace != "" {
		return output.Usagef("--all-namespaces and --namespace %s contradict each other", g.Namespace).
			Advise("leave one out")
	}
	ctx := cmd.Context()
	s, err := e.Connected(ctx, g)
	if reason.Of(err) == reason.ManagerNotInstalled {
		if err = helm.OfferInstall(ctx, e, g, f.yes, err); err != nil {
			return err
		}
		s, err = e.Connected(ctx, g)
	}
	if err != nil {
		return err
	}
	defer s.Close()
	filter := "all"
	switch {
	case f.intercepted && f.wiretapped:
		filter = "held"
	case f.wiretapped:
		filter = "wiretapped"
	case f.intercepted:
		filter = "intercepted"
	case f.interceptable:
		filter = "interceptable"
	}
	req := &daemonpb.ListRequest{Namespace: g.Namespace, AllNamespaces: f.allNamespaces, Filter: filter}
	if output.OutputOf(cmd) == output.FormatStream {
		return followList(ctx, e, s, req)
	}
	s.Line.Set("listing workloads")
	reply, err := s.List(ctx, req)
	s.Line.Close()
	if err != nil {
		return err
	}
	if format := output.OutputOf(cmd); format != output.FormatText {
		return e.Write(format, layout.WorkloadRecords(reply.GetWorkloads()))
	}
	if len(reply.GetWorkloads()) == 0 {
		switch {
		case f.intercepted:
			e.Say(g, "No intercepts")
		case f.wiretapped:
			e.Say(g, "No wiretaps")
		default:
			e.Say(g, "No Workloads (Deployments, StatefulSets, DaemonSets, Rollouts, ReplicaSets, Jobs, CronJobs, or Pods)")
		}
		return nil
	}
	return layout.List(e.Stdout, reply.GetWorkloads(), e.Now(), e.Paint(e.Stdout))
}

// listAgain is the interval between two lists.
const listAgain = time.Second

// followList writes the list, and again whenever it changes, until it is interrupted.
func followList(ctx context.Context, e *env.Env, s *env.Daemon, req *daemonpb.ListRequest) error {
	tick := time.NewTicker(listAgain)
	defer tick.Stop()
	var before []layout.Workload
	for {
		reply, err := s.List(ctx, req)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if now := layout.WorkloadRecords(reply.GetWorkloads()); before == nil ||
			!reflect.DeepEqual(before, now) {
			if err := e.Write(output.FormatStream, now); err != nil {
				return err
			}
			before = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
