// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// contextRecord is what programs read about one context of the kubeconfig.
type contextRecord struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Cluster   string `json:"cluster"`
	Server    string `json:"server,omitempty"`
	Current   bool   `json:"current"`
}

func newListContextsCmd(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list-contexts",
		Short:   "List the contexts of the kubeconfig",
		GroupID: groupOther,
		Long: `List the contexts of the kubeconfig, each with the namespace that is used when none is given. A star marks the current
one, which is used without --context.`,
		Example: fmt.Sprintf(
			"  %[1]s list-contexts\n\n  # Then use one of them\n  %[1]s connect --context staging", e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := e.contexts(g)
			if err != nil {
				return err
			}
			if format := outputOf(cmd); format != formatText {
				return e.write(format, records)
			}
			if len(records) == 0 {
				e.say(g, "No contexts in the kubeconfig")
			}
			for _, r := range records {
				mark := "-"
				if r.Current {
					mark = "*"
				}
				fmt.Fprintf(e.stdout, "%s name: %s\n  default namespace: %s\n", mark, r.Name, r.Namespace)
			}
			return nil
		},
	}
}

func (e *env) contexts(g *global) ([]contextRecord, error) {
	raw, err := e.kubeconfig(g).RawConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w — check --kubeconfig and $KUBECONFIG", err)
	}
	current := raw.CurrentContext
	if f := g.kube.Lookup("context"); f != nil && f.Changed {
		current = f.Value.String()
	}
	records := make([]contextRecord, 0, len(raw.Contexts))
	for _, name := range sortedKeys(raw.Contexts) {
		c := raw.Contexts[name]
		r := contextRecord{Name: name, Namespace: orElse(c.Namespace, "default"), Cluster: c.Cluster,
			Current: name == current}
		if cluster := raw.Clusters[c.Cluster]; cluster != nil {
			r.Server = cluster.Server
		}
		records = append(records, r)
	}
	return records, nil
}

func newListNamespacesCmd(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list-namespaces",
		Short:   "List the namespaces of the cluster",
		GroupID: groupOther,
		Example: fmt.Sprintf("  %[1]s list-namespaces\n\n  # Those of another cluster\n  %[1]s list-namespaces --context staging", e.name),
		Args:    exactly(0, ""), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.cluster(e.clusterOptions(g))
			if err != nil {
				return err
			}
			names, err := c.NamespaceNames(cmd.Context())
			if err != nil {
				return fmt.Errorf("list the namespaces of %s: %w — without the right to list them, name one with --namespace", c.Server(), err)
			}
			if format := outputOf(cmd); format != formatText {
				return e.write(format, append([]string{}, names...))
			}
			for _, name := range names {
				fmt.Fprintln(e.stdout, name)
			}
			return nil
		},
	}
}
