// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/envfile"
	"sidestep.dev/sidestep/client/cli/install"
)

// completionPatience is how long somebody who has pressed Tab is kept waiting.
const completionPatience = 2 * time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeWith offers the names that find returns, and nothing when it fails: an error message
// would spoil the prompt.
func completeWith(find func(context.Context, *cobra.Command) ([]string, error)) completion {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		names, err := find(ctx, cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, word) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument only.
func first(complete completion) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete(cmd, args, word)
	}
}

func completeInterceptable(e *env, g *global) completion { return first(completeWorkloads(e, g)) }

// completeWorkloads asks the daemon if it has a session, and the cluster otherwise. Nothing is
// started for it.
func completeWorkloads(e *env, g *global) completion {
	return completeWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		if s, err := e.reach(ctx, g); err == nil {
			defer s.Close()
			if holdsSession(ctx, s) && !choosesCluster(setFlags(g.kube)) {
				reply, err := s.List(ctx,
					&daemonpb.ListRequest{Namespace: g.namespace, Filter: "interceptable"})
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
		o := e.clusterOptions(g)
		namespace := g.namespace
		if namespace == "" {
			namespace = e.kubeconfigNamespace(g)
		}
		c, err := e.cluster(o)
		if err != nil {
			return nil, err
		}
		return c.WorkloadNames(ctx, namespace)
	})
}

// completeIntercepts offers what this laptop intercepts.
func completeIntercepts(e *env, g *global) completion {
	return first(completeWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		s, err := e.reach(ctx, g)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		st, err := s.Status(ctx, &daemonpb.Empty{})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, i := range st.GetIntercepts() {
			names = append(names, i.GetName())
		}
		slices.Sort(names)
		return names, nil
	}))
}

func completeInterceptFlags(e *env, g *global, cmd *cobra.Command) {
	for _, name := range []string{"workload", "deployment"} {
		_ = cmd.RegisterFlagCompletionFunc(name, completeWorkloads(e, g))
	}
	_ = cmd.RegisterFlagCompletionFunc("mechanism", words(mechanismTCP, mechanismHTTP))
	_ = cmd.RegisterFlagCompletionFunc("existing", words(existingWords...))
	_ = cmd.RegisterFlagCompletionFunc("env-syntax", words(envfile.Syntaxes...))
	for _, name := range []string{"http-header", "http-match"} {
		_ = cmd.RegisterFlagCompletionFunc(name, words(headerAuto, headerAll))
	}
	_ = cmd.RegisterFlagCompletionFunc("service",
		completeParts(e, g, func(_ string, p install.Parts) []string { return p.Services }))
	_ = cmd.RegisterFlagCompletionFunc("container",
		completeParts(e, g, func(_ string, p install.Parts) []string { return p.Containers }))
	_ = cmd.RegisterFlagCompletionFunc("port", completePort(e, g))
	for _, name := range []string{"address", "http-path-equal", "http-path-prefix", "http-path-regex",
		"timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// completeParts offers some of the parts of the workload that the command line names so far.
func completeParts(e *env, g *global, choose func(word string, p install.Parts) []string) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return completeWith(func(ctx context.Context, cmd *cobra.Command) ([]string, error) {
			workload := ""
			if len(args) > 0 {
				workload = args[0]
			}
			for _, name := range []string{"workload", "deployment"} {
				if f := cmd.Flags().Lookup(name); f.Changed {
					workload = f.Value.String()
				}
			}
			if _, name, ok := strings.Cut(workload, "/"); ok {
				workload = name
			}
			if workload == "" {
				return nil, nil
			}
			c, err := e.cluster(e.clusterOptions(g))
			if err != nil {
				return nil, err
			}
			parts, err := c.WorkloadParts(ctx, e.workloadNamespace(ctx, g), workload)
			return choose(word, parts), err
		})(cmd, args, word)
	}
}

// completePort offers the service's ports once the local one has been typed, as in 9000:http.
func completePort(e *env, g *global) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if !strings.Contains(word, ":") {
			return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return completeParts(e, g, func(word string, p install.Parts) []string {
			service := cmd.Flags().Lookup("service").Value.String()
			local := word[:strings.LastIndex(word, ":")+1]
			var found []string
			for _, s := range p.Services {
				if service != "" && s != service {
					continue
				}
				for _, port := range p.Ports[s] {
					found = append(found, local+port)
				}
			}
			slices.Sort(found)
			return slices.Compact(found)
		})(cmd, args, word)
	}
}

// workloadNamespace is where a workload is looked for.
func (e *env) workloadNamespace(ctx context.Context, g *global) string {
	if g.namespace != "" {
		return g.namespace
	}
	if s, err := e.reach(ctx, g); err == nil && !choosesCluster(setFlags(g.kube)) {
		defer s.Close()
		if st, err := s.Status(ctx, &daemonpb.Empty{}); err == nil && st.GetSession() != "" {
			return st.GetNamespace()
		}
	}
	return e.kubeconfigNamespace(g)
}

func completeGlobals(e *env, root *cobra.Command, g *global) {
	_ = root.RegisterFlagCompletionFunc("output", words(formats...))
	namespaces := completeWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		c, err := e.cluster(e.clusterOptions(g))
		if err != nil {
			return nil, err
		}
		return c.NamespaceNames(ctx)
	})
	_ = root.RegisterFlagCompletionFunc("namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("manager-namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("context",
		completeWith(func(context.Context, *cobra.Command) ([]string, error) {
			raw, err := e.kubeconfig(g).RawConfig()
			if err != nil {
				return nil, err
			}
			return sortedKeys(raw.Contexts), nil
		}))
	for _, name := range []string{"cluster", "user"} {
		_ = root.RegisterFlagCompletionFunc(name,
			completeWith(func(context.Context, *cobra.Command) ([]string, error) {
				raw, err := e.kubeconfig(g).RawConfig()
				if err != nil {
					return nil, err
				}
				if name == "cluster" {
					return sortedKeys(raw.Clusters), nil
				}
				return sortedKeys(raw.AuthInfos), nil
			}))
	}
}

func words(words ...string) completion {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// kubeconfig is read as kubectl reads it.
func (e *env) kubeconfig(g *global) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	overrides := &clientcmd.ConfigOverrides{}
	if f := g.kube.Lookup("kubeconfig"); f != nil {
		rules.ExplicitPath = f.Value.String()
	}
	if f := g.kube.Lookup("context"); f != nil {
		overrides.CurrentContext = f.Value.String()
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

func (e *env) kubeconfigNamespace(g *global) string {
	namespace, _, err := e.kubeconfig(g).Namespace()
	if err != nil {
		return "default"
	}
	return namespace
}
