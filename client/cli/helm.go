// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/install"
)

// installTimeout is how long pods may take to get ready, which includes pulling two images on each
// node.
const installTimeout = 5 * time.Minute

func newHelmCmd(e *env, g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "helm",
		Short:   "Install, upgrade or uninstall the traffic manager",
		GroupID: groupInstall,
		Long: `Install, upgrade or uninstall the traffic manager and the node agents. The Helm chart is part of this program, of the
same version; nothing but the images is downloaded, and no helm needs to be installed.`,
		Example: fmt.Sprintf("  %[1]s helm install\n\n  # After this program was upgraded\n  %[1]s helm upgrade", e.name),
		Args:    func(cmd *cobra.Command, args []string) error { return unknownCommand(cmd, args) },
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newHelmInstallCmd(e, g), newHelmUpgradeCmd(e, g), newHelmUninstallCmd(e, g))
	return cmd
}

func newHelmInstallCmd(e *env, g *global) *cobra.Command {
	var s install.Settings
	var upgrade bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the traffic manager",
		Long: `Install the traffic manager and the node agents, and wait until they are ready. Interrupted, or refused by the
cluster, it removes what it has made.`,
		Example: fmt.Sprintf(`  %[1]s helm install --set image.registry=registry.example.com/you

  # With a group of people who may use it
  %[1]s helm install --set image.registry=registry.example.com/you \
    --set 'developers[0].kind=Group' --set 'developers[0].name=developers'

  # In another namespace, with values from a file
  %[1]s helm install --manager-namespace tools --values values.yaml`, e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withCluster(cmd, g, func(ctx context.Context, c cluster) error {
				if upgrade {
					return e.upgrade(ctx, g, c, s)
				}
				return e.install(ctx, g, c, s)
			})
		},
	}
	flags := cmd.Flags()
	addChartFlags(flags, &s)
	flags.BoolVar(&s.CreateNamespace, "create-namespace", true,
		"Create the traffic manager's namespace if it is missing")
	flags.BoolVarP(&upgrade, "upgrade", "u", false, "Same as helm upgrade")
	_ = flags.MarkHidden("upgrade")
	return cmd
}

func newHelmUpgradeCmd(e *env, g *global) *cobra.Command {
	var s install.Settings
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade the traffic manager, or change its values",
		Long: `Upgrade the traffic manager and the node agents to the version of this program, the definition of intercepts included,
and wait until they are ready. Intercepts stay. Without any values, those of the installation are kept.`,
		Example: fmt.Sprintf(`  %[1]s helm upgrade

  # Change one value and keep the others
  %[1]s helm upgrade --reuse-values --set logLevel=debug`, e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.ResetValues && s.ReuseValues {
				return usagef("--reset-values and --reuse-values contradict each other — leave one out")
			}
			return e.withCluster(cmd, g,
				func(ctx context.Context, c cluster) error { return e.upgrade(ctx, g, c, s) })
		},
	}
	flags := cmd.Flags()
	addChartFlags(flags, &s)
	flags.BoolVar(&s.ReuseValues, "reuse-values", false, "Keep the values of the installation, and add to them")
	flags.BoolVar(&s.ResetValues, "reset-values", false, "Forget the values of the installation")
	return cmd
}

func newHelmUninstallCmd(e *env, g *global) *cobra.Command {
	s := install.Settings{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Uninstall the traffic manager",
		Long: fmt.Sprintf(`Uninstall the traffic manager and the node agents, and wait until their pods are gone. All traffic reaches the pods
of the applications then. The intercepts stay defined, for the next installation; '%s uninstall --everything' removes
them too.`, e.name),
		Example: fmt.Sprintf(
			"  %[1]s helm uninstall\n\n  # An installation in another namespace than the usual one\n  %[1]s helm uninstall --manager-namespace tools", e.name),
		Args:              exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withCluster(cmd, g, func(ctx context.Context, c cluster) error {
				line := e.line(g)
				defer line.Close()
				s.Progress = line.Set
				if err := c.Uninstall(ctx, s); err != nil {
					return err
				}
				line.Close()
				e.say(g, "Traffic Manager uninstalled successfully")
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&s.NoHooks, "no-hooks", false, "Run no hooks of the chart")
	flags.DurationVar(&s.Timeout, "timeout", installTimeout, "How long to wait until all pods are gone")
	return cmd
}

func addChartFlags(flags *pflag.FlagSet, s *install.Settings) {
	flags.StringArrayVarP(&s.Values.ValueFiles, "values", "f", nil,
		"Values from a YAML `FILE` or URL; can be repeated")
	flags.StringArrayVar(&s.Values.Values, "set", nil,
		"Value as `KEY=VALUE`; can be repeated, or separated with commas")
	flags.StringArrayVar(&s.Values.StringValues, "set-string", nil,
		"Value as `KEY=VALUE`, as a string whatever it looks like")
	flags.StringArrayVar(&s.Values.FileValues, "set-file", nil, "Value from a file: `KEY=PATH`")
	flags.StringArrayVar(&s.Values.JSONValues, "set-json", nil, "Value in JSON: `KEY=JSON`")
	flags.BoolVar(&s.NoHooks, "no-hooks", false, "Run no hooks of the chart")
	flags.BoolVar(&s.Wait, "wait", true, "Wait until all pods are ready")
	flags.DurationVar(&s.Timeout, "timeout", installTimeout, "How long to wait until all pods are ready")
}

// withCluster calls do with the cluster that the flags name.
func (e *env) withCluster(cmd *cobra.Command, g *global, do func(context.Context, cluster) error) error {
	c, err := e.cluster(e.installOptions(cmd, g))
	if err != nil {
		return err
	}
	return do(cmd.Context(), c)
}

// installOptions take --namespace for the traffic manager's, unless --manager-namespace names it:
// commands that need this are not about any workload's.
func (e *env) installOptions(cmd *cobra.Command, g *global) install.Options {
	o := e.clusterOptions(g)
	if g.namespace != "" && !cmd.Flags().Changed("manager-namespace") {
		o.Namespace = g.namespace
	}
	return o
}

func (e *env) clusterOptions(g *global) install.Options {
	return install.Options{KubeFlags: g.kube, Namespace: g.managerNamespace, Chart: e.chart,
		Version: e.version, Program: e.name}
}

func (e *env) install(ctx context.Context, g *global, c cluster, s install.Settings) error {
	line := e.line(g)
	defer line.Close()
	s.Progress = line.Set
	if err := c.Install(ctx, s); err != nil {
		return err
	}
	line.Close()
	e.note(g, "Traffic Manager installed successfully")
	return nil
}

func (e *env) upgrade(ctx context.Context, g *global, c cluster, s install.Settings) error {
	line := e.line(g)
	defer line.Close()
	s.Progress = line.Set
	if err := c.Upgrade(ctx, s); err != nil {
		return err
	}
	line.Close()
	e.say(g, "Traffic Manager upgraded successfully")
	return nil
}
