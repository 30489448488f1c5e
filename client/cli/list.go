// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/internal/reason"
)

type listFlags struct {
	allNamespaces, intercepted, wiretapped, interceptable, yes bool
}

func newListCmd(e *env, g *global) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the workloads that can be intercepted, and those that are",
		GroupID: groupTraffic,
		Long: `List the workloads of a namespace: which are ready to be intercepted, which are intercepted and how, and which cannot
be and why. Connects if need be, and installs the traffic manager if the cluster has none.`,
		Example: fmt.Sprintf(`  %[1]s list --namespace shop

  # What this laptop intercepts, in all namespaces
  %[1]s list --intercepts --all-namespaces

  # In a script, on a cluster that may not have the traffic manager yet
  %[1]s list --yes --output json

  # The list as one line of JSON, and again whenever it changes
  %[1]s list --output json-stream`, e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return e.runList(cmd, g, f) },
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

func (e *env) runList(cmd *cobra.Command, g *global, f listFlags) error {
	if f.allNamespaces && g.namespace != "" {
		return usagef("--all-namespaces and --namespace %s contradict each other — leave one out", g.namespace)
	}
	ctx := cmd.Context()
	s, err := e.connected(ctx, g)
	if reason.Of(err) == reason.ManagerNotInstalled {
		if err = e.offerInstall(ctx, g, f.yes, err); err != nil {
			return err
		}
		s, err = e.connected(ctx, g)
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
	req := &daemonpb.ListRequest{Namespace: g.namespace, AllNamespaces: f.allNamespaces, Filter: filter}
	if outputOf(cmd) == formatStream {
		return e.followList(ctx, s, req)
	}
	s.line.Set("listing workloads")
	reply, err := s.List(ctx, req)
	s.line.Close()
	if err != nil {
		return err
	}
	if format := outputOf(cmd); format != formatText {
		return e.write(format, layout.WorkloadRecords(reply.GetWorkloads()))
	}
	if len(reply.GetWorkloads()) == 0 {
		switch {
		case f.intercepted:
			e.say(g, "No intercepts")
		case f.wiretapped:
			e.say(g, "No wiretaps")
		default:
			e.say(g, "No Workloads (Deployments, StatefulSets, DaemonSets, Rollouts, ReplicaSets, or Pods)")
		}
		return nil
	}
	return layout.List(e.stdout, reply.GetWorkloads(), e.paint(e.stdout))
}

// listAgain is the pause between two looks at the cluster.
const listAgain = time.Second

// followList writes the list, and again whenever it is another, until it is interrupted.
func (e *env) followList(ctx context.Context, s *session, req *daemonpb.ListRequest) error {
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
			if err := e.write(formatStream, now); err != nil {
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

// offerInstall installs the traffic manager if the user, asked, wants it. missing is the error that
// said that there is none.
func (e *env) offerInstall(ctx context.Context, g *global, yes bool, missing error) error {
	if !yes {
		_, in := e.isTerminal(e.stdin)
		_, out := e.isTerminal(e.stderr)
		if !in || !out {
			return fmt.Errorf("%w, or use --yes", missing)
		}
	}
	c, err := e.cluster(e.clusterOptions(g))
	if err != nil {
		return err
	}
	if !yes {
		fmt.Fprintf(e.stderr, "There is no traffic manager in namespace %s of %s.\nInstall it now? [Y/n]: ", g.managerNamespace, c.Server())
		agreed, err := e.readYes(ctx)
		if err != nil {
			return err
		}
		if !agreed {
			return missing
		}
	}
	return e.install(ctx, g, c, install.Settings{CreateNamespace: true, Wait: true, Timeout: installTimeout})
}

// readYes reads an answer of which nothing but Enter means yes.
func (e *env) readYes(ctx context.Context) (bool, error) {
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(e.stdin).ReadString('\n')
		if err != nil && line == "" {
			line = "no"
		}
		answer <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(e.stderr)
		return false, ctx.Err()
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "", "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		default:
			return false, errors.New("the answer is neither yes nor no — try again")
		}
	}
}
