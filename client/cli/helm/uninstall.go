// SPDX-License-Identifier: Apache-2.0

package helm

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/output"
)

// NewUninstall returns the command uninstall, which removes everything from cluster and laptop.
func NewUninstall(e *env.Env, g *env.Global) *cobra.Command {
	var everything, allAgents, agent bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall --everything",
		Short: "Remove everything from the cluster and from this laptop",
		Long: fmt.Sprintf(`Remove everything, without asking: all intercepts of everybody in all namespaces, the node agents and what they have put
on their nodes, the traffic manager, the definition of intercepts, and the namespace if '%[1]s helm install' has made
it. Then the daemon of this laptop ends, and its files are deleted. Workloads are not touched; they never were.

To remove the traffic manager and keep the intercepts for the next one, use '%[1]s helm uninstall'.`, e.Name),
		Example: fmt.Sprintf(`  %[1]s uninstall --everything`, e.Name),
		Args: func(cmd *cobra.Command, args []string) error {
			if allAgents || agent {
				return nil // names of workloads
			}
			return env.Exactly(0, "")(cmd, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case everything && (allAgents || agent):
				return output.Usagef("--agent, --all-agents and --everything are mutually exclusive").
					Advise("use one of them")
			case allAgents || agent:
				e.Say(g, "There are no agents in workloads, so there is nothing to uninstall from them")
				return nil
			case !everything:
				return output.Usagef("say --everything to remove everything, or use `%s helm uninstall` to remove the "+
					"traffic manager only", e.Name)
			}
			return e.WithCluster(cmd, g, func(ctx context.Context, c env.Cluster) error {
				return removeEverything(ctx, e, g, c, timeout)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&everything, "everything", "e", false, "Remove everything")
	flags.DurationVar(&timeout, "timeout", installTimeout, "How long to wait until all pods are gone")
	flags.BoolP("yes", "y", false, "Accepted: nothing is asked")
	flags.BoolVarP(&allAgents, "all-agents", "a", false, "There are no agents in workloads")
	flags.BoolVarP(&agent, "agent", "d", false, "There are no agents in workloads")
	for _, name := range []string{"yes", "all-agents", "agent"} {
		_ = flags.MarkHidden(name)
	}
	return cmd
}

// removeEverything first lets the daemon leave its intercepts, then removes everything from the
// cluster, and the laptop's files last: if the cluster cannot be reached, the session can still be
// used.
func removeEverything(ctx context.Context, e *env.Env, g *env.Global, c env.Cluster, timeout time.Duration) error {
	line := e.Line(g)
	defer line.Close()
	e.Note(g, "Removing all intercepts, the node agents and the traffic manager from %s", c.Server())
	if err := c.RemoveEverything(ctx, install.Settings{Timeout: timeout, Progress: line.Set}); err != nil {
		return err
	}
	line.Set("ending the daemon")
	if err := removeDaemon(ctx, e, g); err != nil {
		return err
	}
	line.Close()
	e.Say(g, "Everything is uninstalled")
	return nil
}

func removeDaemon(ctx context.Context, e *env.Env, g *env.Global) error {
	s, err := e.Reach(ctx, g)
	switch {
	case env.NotRunning(err):
	case err != nil:
		return err
	default:
		defer s.Close()
		if err := e.StopDaemon(ctx, g, s); err != nil {
			return err
		}
	}
	if err := e.Clean(); err != nil {
		return fmt.Errorf("delete the daemon's files: %w", err)
	}
	return nil
}
