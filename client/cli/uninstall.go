// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/install"
)

func newUninstallCmd(e *env, g *global) *cobra.Command {
	var everything, allAgents, agent bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "uninstall --everything",
		Short:   "Remove everything from the cluster and from this laptop",
		GroupID: groupInstall,
		Long: fmt.Sprintf(`Remove everything, without asking: all intercepts of everybody in all namespaces, the node agents and what they have put
on their nodes, the traffic manager, the definition of intercepts, and the namespace if '%[1]s helm install' has made
it. Then the daemon of this laptop ends, and its files are deleted. Workloads are not touched; they never were.

To remove the traffic manager and keep the intercepts for the next one, use '%[1]s helm uninstall'.`, e.name),
		Example: fmt.Sprintf(`  %[1]s uninstall --everything`, e.name),
		Args: func(cmd *cobra.Command, args []string) error {
			if allAgents || agent {
				return nil // names of workloads
			}
			return exactly(0, "")(cmd, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case everything && (allAgents || agent):
				return usagef("--agent, --all-agents and --everything are mutually exclusive — use one of them")
			case allAgents || agent:
				e.say(g, "There are no agents in workloads, so there is nothing to uninstall from them")
				return nil
			case !everything:
				return usagef("say --everything to remove everything, or use `%s helm uninstall` to remove the traffic manager only", e.name)
			}
			return e.withCluster(cmd, g, func(ctx context.Context, c cluster) error {
				return e.removeEverything(ctx, g, c, timeout)
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

// removeEverything first lets the daemon leave what it holds, then removes the cluster's side, and
// the laptop's last: if the cluster cannot be reached, the session is still there to be used.
func (e *env) removeEverything(ctx context.Context, g *global, c cluster, timeout time.Duration) error {
	line := e.line(g)
	defer line.Close()
	e.note(g, "Removing all intercepts, the node agents and the traffic manager from %s", c.Server())
	if err := c.RemoveEverything(ctx, install.Settings{Timeout: timeout, Progress: line.Set}); err != nil {
		return err
	}
	line.Set("ending the daemon")
	if err := e.removeDaemon(ctx, g); err != nil {
		return err
	}
	line.Close()
	e.say(g, "Everything is uninstalled")
	return nil
}

func (e *env) removeDaemon(ctx context.Context, g *global) error {
	s, err := e.reach(ctx, g)
	switch {
	case notRunning(err):
	case err != nil:
		return err
	default:
		defer s.Close()
		if err := e.stopDaemon(ctx, g, s); err != nil {
			return err
		}
	}
	if err := e.clean(); err != nil {
		return fmt.Errorf("delete the daemon's files: %w", err)
	}
	return nil
}

// holdsSession tells whether the daemon, if one runs, has a session.
func holdsSession(ctx context.Context, s *session) bool {
	st, err := s.Status(ctx, &daemonpb.Empty{})
	return err == nil && st.GetSession() != ""
}
