// SPDX-License-Identifier: Apache-2.0

// Package helm installs, upgrades and removes the traffic manager with the chart that the program
// contains.
package helm

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/output"
)

// installTimeout is how long pods may take to become ready, including the pull of two images on
// each node.
const installTimeout = 5 * time.Minute

// New returns the command helm.
func New(e *env.Env, g *env.Global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "helm",
		Short: "Install, upgrade or uninstall the traffic manager",
		Long: `Install, upgrade or uninstall the traffic manager and the node agents. The Helm chart is part of this program, of the
same version; nothing but the images is downloaded, and no helm needs to be installed.`,
		Example: fmt.Sprintf("  %[1]s helm install\n\n  # After this program was upgraded\n  %[1]s helm "+
			"upgrade", e.Name),
		Args: func(cmd *cobra.Command, args []string) error { return env.UnknownCommand(cmd, args) },
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newInstall(e, g), newUpgrade(e, g), newUninstallRelease(e, g))
	return cmd
}

func newInstall(e *env.Env, g *env.Global) *cobra.Command {
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
  %[1]s helm install --manager-namespace tools --values values.yaml`, e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.WithCluster(cmd, g, func(ctx context.Context, c env.Cluster) error {
				if upgrade {
					return runUpgrade(ctx, e, g, c, s)
				}
				return runInstall(ctx, e, g, c, s)
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

func newUpgrade(e *env.Env, g *env.Global) *cobra.Command {
	var s install.Settings
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade the traffic manager, or change its values",
		Long: `Upgrade the traffic manager and the node agents to the version of this program, the definition of intercepts included,
and wait until they are ready. Intercepts stay. Without any values, those of the installation are kept.`,
		Example: fmt.Sprintf(`  %[1]s helm upgrade

  # Change one value and keep the others
  %[1]s helm upgrade --reuse-values --set logLevel=debug`, e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.ResetValues && s.ReuseValues {
				return output.Usagef("--reset-values and --reuse-values contradict each other").
					Advise("leave one out")
			}
			return e.WithCluster(cmd, g,
				func(ctx context.Context, c env.Cluster) error { return runUpgrade(ctx, e, g, c, s) })
		},
	}
	flags := cmd.Flags()
	addChartFlags(flags, &s)
	flags.BoolVar(&s.ReuseValues, "reuse-values", false, "Keep the values of the installation, and add to them")
	flags.BoolVar(&s.ResetValues, "reset-values", false, "Forget the values of the installation")
	return cmd
}

func newUninstallRelease(e *env.Env, g *env.Global) *cobra.Command {
	s := install.Settings{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Uninstall the traffic manager",
		Long: fmt.Sprintf(`Uninstall the traffic manager and the node agents, and wait until their pods are gone. All traffic reaches the pods
of the applications then. The intercepts stay defined, for the next installation; '%s uninstall --everything' removes
them too.`, e.Name),
		Example: fmt.Sprintf(
			"  %[1]s helm uninstall\n\n  # An installation in another namespace than the usual one\n  %[1]s helm "+
				"uninstall --manager-namespace tools", e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.WithCluster(cmd, g, func(ctx context.Context, c env.Cluster) error {
				line := e.Line(g)
				defer line.Close()
				s.Progress = line.Set
				if err := c.Uninstall(ctx, s); err != nil {
					return err
				}
				line.Close()
				e.Say(g, "Traffic Manager uninstalled successfully")
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

func runInstall(ctx context.Context, e *env.Env, g *env.Global, c env.Cluster, s install.Settings) error {
	line := e.Line(g)
	defer line.Close()
	s.Progress = line.Set
	if err := c.Install(ctx, s); err != nil {
		return err
	}
	line.Close()
	e.Note(g, "Traffic Manager installed successfully")
	return nil
}

func runUpgrade(ctx context.Context, e *env.Env, g *env.Global, c env.Cluster, s install.Settings) error {
	line := e.Line(g)
	defer line.Close()
	s.Progress = line.Set
	var warnings []string
	s.Warn = func(text string) { warnings = append(warnings, text) }
	if err := c.Upgrade(ctx, s); err != nil {
		return err
	}
	line.Close()
	for _, text := range warnings {
		e.Warn(g, text)
	}
	e.Say(g, "Traffic Manager upgraded successfully")
	return nil
}
