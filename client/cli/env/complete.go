// SPDX-License-Identifier: Apache-2.0

package env

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
)

// completionPatience is how long a user who has pressed Tab waits at most.
const completionPatience = 2 * time.Second

// Completion offers words at the prompt.
type Completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// CompleteWith offers the names that find returns. If there are none, shells that can (bash and
// zsh) show why beside the prompt, as a line that is not taken for a word.
func CompleteWith(find func(context.Context, *cobra.Command) ([]string, error)) Completion {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		names, err := find(ctx, cmd)
		if err != nil {
			why, _, _ := strings.Cut(output.Sentence(err), "\n")
			return cobra.AppendActiveHelp(nil, layout.Safe(why)), cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, word) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// First completes the first argument only.
func First(complete Completion) Completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete(cmd, args, word)
	}
}

// CompleteWorkloads asks the daemon if it has a session, and the cluster otherwise. It starts no
// daemon.
func CompleteWorkloads(e *Env, g *Global) Completion {
	return CompleteWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		namespace := e.WorkloadNamespace(ctx, g)
		names, err := e.workloadNames(ctx, g, namespace)
		if err == nil && len(names) == 0 {
			err = fmt.Errorf("nothing in namespace %s can be intercepted: name another with --namespace", namespace)
		}
		return names, err
	})
}

func (e *Env) workloadNames(ctx context.Context, g *Global, namespace string) ([]string, error) {
	if s, err := e.Reach(ctx, g); err == nil {
		defer s.Close()
		if holdsSession(ctx, s) && !choosesCluster(setFlags(g.Kube)) {
			reply, err := s.List(ctx, &daemonpb.ListRequest{Namespace: g.Namespace, Filter: "interceptable"})
			if err != nil {
				return nil, err
			}
			var names []string
			for _, w := range reply.GetWorkloads() {
				names = append(names, w.GetName())
			}
			slices.Sort(names)
			return slices.Compact(names), nil
		}
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		return nil, err
	}
	return c.WorkloadNames(ctx, namespace)
}

// WorkloadNamespace returns the namespace in which a workload is looked for.
func (e *Env) WorkloadNamespace(ctx context.Context, g *Global) string {
	if g.Namespace != "" {
		return g.Namespace
	}
	if s, err := e.Reach(ctx, g); err == nil && !choosesCluster(setFlags(g.Kube)) {
		defer s.Close()
		if st, err := s.Status(ctx, &daemonpb.Empty{}); err == nil && st.GetSession() != "" {
			return st.GetNamespace()
		}
	}
	return e.kubeconfigNamespace(g)
}

// Words returns the completion that offers these words and no files.
func Words(words ...string) Completion {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
