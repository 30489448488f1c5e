package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"sidestep.dev/sidestep/api/daemonpb"
)

// completionPatience is how long somebody who has pressed Tab is kept waiting.
const completionPatience = 2 * time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeWith offers the names that find returns, and nothing when it fails: an error message would spoil the prompt.
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

// completeWorkloads asks the daemon if it has a session, and the cluster otherwise. Nothing is started for it.
func completeWorkloads(e *env, g *global) completion {
	return completeWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		if s, err := e.reach(ctx, g); err == nil {
			defer s.Close()
			if holdsSession(ctx, s) && !choosesCluster(setFlags(g.kube)) {
				reply, err := s.List(ctx, &daemonpb.ListRequest{Namespace: g.namespace, Filter: "interceptable"})
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
	for _, name := range []string{"http-header", "http-match"} {
		_ = cmd.RegisterFlagCompletionFunc(name, words(headerAuto, headerAll))
	}
	for _, name := range []string{"port", "address", "service", "container", "http-path-equal", "http-path-prefix", "http-path-regex", "timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

func completeGlobals(e *env, root *cobra.Command, g *global) {
	_ = root.RegisterFlagCompletionFunc("output", words(formatText, formatJSON, formatYAML))
	namespaces := completeWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		c, err := e.cluster(e.clusterOptions(g))
		if err != nil {
			return nil, err
		}
		return c.NamespaceNames(ctx)
	})
	_ = root.RegisterFlagCompletionFunc("namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("manager-namespace", namespaces)
	_ = root.RegisterFlagCompletionFunc("context", completeWith(func(context.Context, *cobra.Command) ([]string, error) {
		raw, err := e.kubeconfig(g).RawConfig()
		if err != nil {
			return nil, err
		}
		return sortedKeys(raw.Contexts), nil
	}))
	for _, name := range []string{"cluster", "user"} {
		_ = root.RegisterFlagCompletionFunc(name, completeWith(func(context.Context, *cobra.Command) ([]string, error) {
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
