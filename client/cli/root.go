// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/config"
	"sidestep.dev/sidestep/client/cli/connect"
	"sidestep.dev/sidestep/client/cli/contexts"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/helm"
	"sidestep.dev/sidestep/client/cli/intercept"
	"sidestep.dev/sidestep/client/cli/list"
	"sidestep.dev/sidestep/client/cli/logs"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/client/cli/status"
)

// The groups of commands in the help of the root.
const (
	groupSession = "session"
	groupTraffic = "traffic"
	groupInstall = "install"
	groupOther   = "other"
)

// Run runs the command line args and returns the exit code.
func Run(ctx context.Context, e *env.Env, args []string) int {
	g := &env.Global{Kube: env.NewKubeFlags(), Format: output.FormatText}
	root := newRootCmd(e, g)
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		plainUsages(root)
	}
	root.SetArgs(append([]string{}, args...)) // nil would mean the process's own arguments
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		if g.Format = output.OutputOf(cmd); g.Format == output.FormatText {
			g.Format = output.WantedFormat(args) // a wrong flag ends the parsing before --output is reached
		}
		return fail(ctx, e, g, cmd, err)
	}
	if g.Said.Len() > 0 {
		if err := e.Write(g.Format, output.Envelope{Cmd: output.CommandName(cmd), Stdout: g.Said.String()}); err != nil {
			return fail(ctx, e, g, cmd, err)
		}
	}
	return 0
}

func newRootCmd(e *env.Env, g *env.Global) *cobra.Command {
	root := &cobra.Command{
		Use:   e.Name + " COMMAND",
		Short: e.Brand() + " sends one service's requests to your laptop",
		Long: e.Brand() + ` sends the requests of one Kubernetes service, all of them or those that match, to a process on your
laptop. Everybody else's requests keep reaching the pods, and no pod is changed or restarted.`,
		Example: fmt.Sprintf(`  # Say which cluster, see what there is, and take the requests that carry your header
  %[1]s connect
  %[1]s list
  %[1]s intercept orders --port 9000 --http-header auto

  # And stop
  %[1]s leave orders
  %[1]s quit`, e.Name),
		Version:                    e.Version,
		Args:                       env.UnknownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			g.Format = output.OutputOf(cmd)
			return checkGlobal(cmd, args)
		},
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetIn(e.Stdin)
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return output.Usage(err) })
	addGlobalFlags(root, g)
	root.AddGroup(
		&cobra.Group{ID: groupSession, Title: "Session commands:"},
		&cobra.Group{ID: groupTraffic, Title: "Traffic commands:"},
		&cobra.Group{ID: groupInstall, Title: "Installation commands:"},
		&cobra.Group{ID: groupOther, Title: "Other commands:"},
	)
	addGroup(root, groupSession, connect.New(e, g), connect.NewQuit(e, g), status.New(e, g))
	addGroup(root, groupTraffic, list.New(e, g), intercept.New(e, g), intercept.NewWiretap(e, g),
		intercept.NewLeave(e, g))
	addGroup(root, groupInstall, helm.New(e, g), helm.NewUninstall(e, g))
	addGroup(root, groupOther, status.NewVersion(e, g), config.New(e, g), logs.NewLevel(e, g),
		logs.New(e, g), contexts.New(e, g), contexts.NewNamespaces(e, g), newManCmd(e, g))
	root.AddCommand(connect.NewForeground(e))
	root.AddCommand(absentCommands()...)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("")
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Example = fmt.Sprintf(
			"  # In this shell, and in the next ones if the line is in ~/.bashrc\n  source <(%[1]s completion bash)", e.Name)
	}
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { help(e, cmd) })
	root.SetUsageFunc(func(cmd *cobra.Command) error { help(e, cmd); return nil })
	completeGlobals(e, root, g)
	return root
}

// plainUsages removes the backquotes from flags' descriptions. The help takes the quoted word for
// the name of the value, and a shell's completion would print the quotes.
func plainUsages(cmd *cobra.Command) {
	plain := func(f *pflag.Flag) { f.Usage = strings.ReplaceAll(f.Usage, "`", "") }
	cmd.Flags().VisitAll(plain)
	cmd.PersistentFlags().VisitAll(plain)
	for _, sub := range cmd.Commands() {
		plainUsages(sub)
	}
}

// addGroup adds commands that the help of the root lists together.
func addGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// addGlobalFlags adds the flags that every command has, in the spelling of each generation.
func addGlobalFlags(root *cobra.Command, g *env.Global) {
	flags := root.PersistentFlags()
	flags.AddFlagSet(g.Kube)
	flags.StringVarP(&g.Namespace, "namespace", "n", "",
		"Namespace of the workload (default: the session's, else the kubeconfig's)")
	flags.StringVar(&g.ManagerNamespace, "manager-namespace", env.DefaultManagerNamespace,
		"Namespace of the traffic manager")
	flags.String("output", output.FormatText, `Format of the output: "default", "json", "yaml" or "json-stream"`)
	flags.BoolVar(&g.Quiet, "quiet", false, "Print results and errors, and nothing else")
	flags.StringVar(&g.Progress, "progress", "auto", `How progress is shown: "auto", "tty", "plain" or "quiet"`)
	flags.String("format", "", "Same as --output")
	flags.Bool("no-report", false, "Nothing is ever reported, with this flag or without")
	flags.String("use", "", "Name of one connection among several")
	flags.Bool("docker", false, "Run the daemon in a container")
	for _, name := range []string{"format", "no-report", "use", "docker", "progress"} {
		_ = flags.MarkHidden(name)
	}
}

// checkGlobal refuses flags that no command can obey.
func checkGlobal(cmd *cobra.Command, _ []string) error {
	flags := cmd.Flags()
	for _, name := range []string{"output", "format"} {
		if v, err := flags.GetString(name); err == nil && flags.Changed(name) && !slices.Contains(output.Formats, v) {
			return output.Usagef("--%s %s: unknown format", name, v).
				Advise("use %s", strings.Join(output.Formats, ", "))
		}
	}
	if v, err := flags.GetString("progress"); err == nil &&
		!slices.Contains([]string{"auto", "tty", "plain", "quiet"}, v) {
		return output.Usagef("--progress %s: unknown style", v).
			Advise("use auto, tty, plain or quiet")
	}
	if flags.Changed("use") {
		return output.Unavailable("--use is", "there is one connection at a time, so leave it out")
	}
	if v, err := flags.GetBool("docker"); err == nil && v {
		return output.Unavailable("--docker is",
			"leave it out: the daemon needs no root rights and changes no network of this machine")
	}
	return nil
}
