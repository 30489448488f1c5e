// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/output"
)

func completeGlobals(e *env.Env, root *cobra.Command, g *env.Global) {
	_ = root.RegisterFlagCompletionFunc("output", env.Words(output.Formats...))
	namespaces := env.CompleteWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		c, err := e.Cluster(e.ClusterOptions(g))
		if err != nil {
			return nil, err
		}
		return c.NamespaceNames(ctx)
	})
	_ = root.RegisterFlagCompletionFunc("namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("manager-namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("context",
		env.CompleteWith(func(context.Context, *cobra.Command) ([]string, error) {
			raw, err := e.Kubeconfig(g).RawConfig()
			if err != nil {
				return nil, err
			}
			return env.SortedKeys(raw.Contexts), nil
		}))
	for _, name := range []string{"cluster", "user"} {
		_ = root.RegisterFlagCompletionFunc(name,
			env.CompleteWith(func(context.Context, *cobra.Command) ([]string, error) {
				raw, err := e.Kubeconfig(g).RawConfig()
				if err != nil {
					return nil, err
				}
				if name == "cluster" {
					return env.SortedKeys(raw.Clusters), nil
				}
				return env.SortedKeys(raw.AuthInfos), nil
			}))
	}
}
