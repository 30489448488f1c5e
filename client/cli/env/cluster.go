// SPDX-License-Identifier: Apache-2.0

package env

import (
	"context"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/install"
)

// WithCluster calls do with the cluster that the flags name.
func (e *Env) WithCluster(cmd *cobra.Command, g *Global, do func(context.Context, Cluster) error) error {
	c, err := e.Cluster(e.installOptions(cmd, g))
	if err != nil {
		return err
	}
	return do(cmd.Context(), c)
}

// installOptions take --namespace as the traffic manager's, unless --manager-namespace is given:
// commands that use this are not about a workload's namespace.
func (e *Env) installOptions(cmd *cobra.Command, g *Global) install.Options {
	o := e.ClusterOptions(g)
	if g.Namespace != "" && !cmd.Flags().Changed("manager-namespace") {
		o.Namespace = g.Namespace
	}
	return o
}

// ClusterOptions returns what the flags say about the cluster and its installation.
func (e *Env) ClusterOptions(g *Global) install.Options {
	return install.Options{KubeFlags: g.Kube, Namespace: g.ManagerNamespace, Chart: e.Chart,
		Version: e.Version, Program: e.Name}
}
