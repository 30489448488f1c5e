// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/envfile"
	"sidestep.dev/sidestep/client/cli/install"
)

func completeInterceptable(e *env.Env, g *env.Global) env.Completion {
	return env.First(env.CompleteWorkloads(e, g))
}

// completeIntercepts offers the names of this laptop's intercepts.
func completeIntercepts(e *env.Env, g *env.Global) env.Completion {
	return env.First(env.CompleteWith(func(ctx context.Context, _ *cobra.Command) ([]string, error) {
		s, err := e.Reach(ctx, g)
		if env.NotRunning(err) {
			return nil, errors.New("nothing is intercepted: there is no session")
		}
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
		if len(names) == 0 {
			return nil, errors.New("nothing is intercepted")
		}
		slices.Sort(names)
		return names, nil
	}))
}

func completeFlags(e *env.Env, g *env.Global, cmd *cobra.Command) {
	for _, name := range []string{"workload", "deployment"} {
		_ = cmd.RegisterFlagCompletionFunc(name, env.CompleteWorkloads(e, g))
	}
	_ = cmd.RegisterFlagCompletionFunc("mechanism", env.Words(mechanismTCP, mechanismHTTP))
	_ = cmd.RegisterFlagCompletionFunc("existing", env.Words(v1alpha1.ExistingWords()...))
	_ = cmd.RegisterFlagCompletionFunc("env-syntax", env.Words(envfile.Syntaxes...))
	_ = cmd.RegisterFlagCompletionFunc("env-keep", env.Words("HTTPS_PROXY", "HTTP_PROXY", "JAVA_OPTS",
		"JAVA_TOOL_OPTIONS", "NODE_OPTIONS", "NO_PROXY", "PYTHONPATH", "SSL_CERT_FILE"))
	for _, name := range []string{"http-header", "http-match"} {
		_ = cmd.RegisterFlagCompletionFunc(name, env.Words(headerAuto, headerAll))
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

// completeParts offers parts of the workload that the command line names so far.
func completeParts(e *env.Env, g *env.Global, choose func(word string, p install.Parts) []string) env.Completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return env.CompleteWith(func(ctx context.Context, cmd *cobra.Command) ([]string, error) {
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
			c, err := e.Cluster(e.ClusterOptions(g))
			if err != nil {
				return nil, err
			}
			parts, err := c.WorkloadParts(ctx, e.WorkloadNamespace(ctx, g), workload)
			return choose(word, parts), err
		})(cmd, args, word)
	}
}

// completePort offers the service's ports once the local port has been typed, as in 9000:http.
func completePort(e *env.Env, g *env.Global) env.Completion {
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
