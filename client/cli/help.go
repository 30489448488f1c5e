package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const helpWidth = 120

// help prints the help of cmd. cobra's template would print all inherited flags in one heap, and kubectl's would bury ours; they are
// listed by the root and by connect.
func (e *env) help(cmd *cobra.Command, _ []string) {
	cmd.InitDefaultHelpFlag()
	out := cmd.OutOrStdout()
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	fmt.Fprintf(out, "%s\n\nUsage:\n  %s\n", strings.TrimSpace(long), useLine(cmd))
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(out, "\nAliases:\n  %s\n", strings.Join(append([]string{cmd.Name()}, cmd.Aliases...), ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(out, "\nExamples:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	helpCommands(out, cmd)
	helpFlags(out, cmd)
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\nUse \"%s COMMAND --help\" to read about a command.\n", cmd.CommandPath())
	}
}

func useLine(cmd *cobra.Command) string {
	if cmd.HasParent() && cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	return cmd.UseLine()
}

func helpCommands(out io.Writer, cmd *cobra.Command) {
	groups := cmd.Groups()
	if len(groups) == 0 && cmd.HasAvailableSubCommands() {
		groups = []*cobra.Group{{Title: "Commands:"}}
	}
	width := 11
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			width = max(width, len(sub.Name()))
		}
	}
	for _, group := range groups {
		fmt.Fprintf(out, "\n%s\n", group.Title)
		for _, sub := range cmd.Commands() {
			if sub.GroupID == group.ID && (sub.IsAvailableCommand() || sub.Name() == "help") {
				fmt.Fprintf(out, "  %-*s  %s\n", width, sub.Name(), sub.Short)
			}
		}
	}
}

func helpFlags(out io.Writer, cmd *cobra.Command) {
	kubeNames := newKubeFlags()
	own, global, kube := newSection(cmd), newSection(cmd), newSection(cmd)
	sort := func(f *pflag.Flag, otherwise *pflag.FlagSet) {
		if kubeNames.Lookup(f.Name) != nil {
			kube.AddFlag(f)
		} else {
			otherwise.AddFlag(f)
		}
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if cmd.HasParent() {
			sort(f, own)
		} else {
			sort(f, global) // the root's flags are for every command
		}
	})
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { sort(f, global) })
	helpSection(out, "Flags", own)
	helpSection(out, "Global flags", global)
	if !cmd.HasParent() || cmd.Name() == "connect" {
		helpSection(out, "Kubernetes flags", kube)
	} else if !cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\nkubectl's flags, such as --context and --kubeconfig, say which cluster is meant: see '%s --help'.\n", cmd.Root().Name())
	}
}

func newSection(cmd *cobra.Command) *pflag.FlagSet {
	section := pflag.NewFlagSet("", pflag.ContinueOnError)
	section.SortFlags = cmd.Flags().SortFlags
	return section
}

func helpSection(out io.Writer, title string, flags *pflag.FlagSet) {
	if flags.HasAvailableFlags() {
		fmt.Fprintf(out, "\n%s:\n%s\n", title, strings.TrimRight(flags.FlagUsagesWrapped(helpWidth), "\n"))
	}
}
