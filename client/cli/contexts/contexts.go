// SPDX-License-Identifier: Apache-2.0

// Package contexts lists the contexts of the kubeconfig, and the namespaces of a cluster.
package contexts

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// contextRecord is the record of one context of the kubeconfig.
type contextRecord struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Cluster   string `json:"cluster"`
	Server    string `json:"server,omitempty"`
	Current   bool   `json:"current"`
}

// New returns the command list-contexts.
func New(e *env.Env, g *env.Global) *cobra.Command {
	return &cobra.Command{
		Use:   "list-contexts",
		Short: "List the contexts of the kubeconfig",
		Long: `List the contexts of the kubeconfig, each with the namespace that is used when none is given. A star marks the current
one, which is used without --context.`,
		Example: fmt.Sprintf(
			"  %[1]s list-contexts\n\n  # Then use one of them\n  %[1]s connect --context staging", e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := contexts(e, g)
			if err != nil {
				return err
			}
			if format := output.OutputOf(cmd); format != output.FormatText {
				return e.Write(format, records)
			}
			if len(records) == 0 {
				e.Say(g, "No contexts in the kubeconfig")
			}
			for _, r := range records {
				mark := "-"
				if r.Current {
					mark = "*"
				}
				fmt.Fprintf(e.Stdout, "%s name: %s\n  default namespace: %s\n", mark, layout.Safe(r.Name),
					layout.Safe(r.Namespace))
			}
			return nil
		},
	}
}

func contexts(e *env.Env, g *env.Global) ([]contextRecord, error) {
	raw, err := e.Kubeconfig(g).RawConfig()
	if err != nil {
		return nil, reason.Advise(fmt.Errorf("read the kubeconfig: %w", err),
			"check --kubeconfig and $KUBECONFIG")
	}
	current := raw.CurrentContext
	if f := g.Kube.Lookup("context"); f != nil && f.Changed {
		current = f.Value.String()
	}
	records := make([]contextRecord, 0, len(raw.Contexts))
	for _, name := range env.SortedKeys(raw.Contexts) {
		c := raw.Contexts[name]
		r := contextRecord{Name: name, Namespace: cmp.Or(c.Namespace, "default"), Cluster: c.Cluster,
			Current: name == current}
		if cluster := raw.Clusters[c.Cluster]; cluster != nil {
			r.Server = cluster.Server
		}
		records = append(records, r)
	}
	return records, nil
}

// NewNamespaces returns the command list-namespaces.
func NewNamespaces(e *env.Env, g *env.Global) *cobra.Command {
	return &cobra.Command{
		Use:   "list-namespaces",
		Short: "List the namespaces of the cluster",
		Example: fmt.Sprintf("  %[1]s list-namespaces\n\n  # Those of another cluster\n  %[1]s list-namespaces "+
			"--context staging", e.Name),
		Args: env.Exactly(0, ""), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.Cluster(e.ClusterOptions(g))
			if err != nil {
				return err
			}
			names, err := c.NamespaceNames(cmd.Context())
			if err != nil {
				return reason.Advise(fmt.Errorf("list the namespaces of %s: %w", c.Server(), err),
					"without the right to list them, name one with --namespace")
			}
			if format := output.OutputOf(cmd); format != output.FormatText {
				return e.Write(format, append([]string{}, names...))
			}
			for _, name := range names {
				fmt.Fprintln(e.Stdout, name)
			}
			return nil
		},
	}
}
