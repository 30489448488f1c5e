// SPDX-License-Identifier: Apache-2.0

package env

import (
	"slices"

	"k8s.io/client-go/tools/clientcmd"
)

// SortedKeys returns the keys of m in order.
func SortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Kubeconfig returns the kubeconfig, read as kubectl reads it.
func (e *Env) Kubeconfig(g *Global) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	overrides := &clientcmd.ConfigOverrides{}
	if f := g.Kube.Lookup("kubeconfig"); f != nil {
		rules.ExplicitPath = f.Value.String()
	}
	if f := g.Kube.Lookup("context"); f != nil {
		overrides.CurrentContext = f.Value.String()
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

func (e *Env) kubeconfigNamespace(g *Global) string {
	namespace, _, err := e.Kubeconfig(g).Namespace()
	if err != nil {
		return "default"
	}
	return namespace
}
