package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// help prints the help of cmd. cobra's templates could print the flags in one heap only, and kubectl's would bury ours.
func (e *env) help(cmd *cobra.Command, _ []string) {
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
	own, kube, others := pflag.NewFlagSet("", 0), pflag.NewFlagSet("", 0), pflag.NewFlagSet("", 0)
	kubeNames := newKubeFlags()
	cmd.InitDefaultHelpFlag()
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { own.AddFlag(f) })
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { others.AddFlag(f) })
	if !cmd.HasParent() {
		// All flags of the root are for every command.
		own, others = pflag.NewFlagSet("", 0), own
	}
	rest := pflag.NewFlagSet("", 0)
	others.VisitAll(func(f *pflag.Flag) {
		if kubeNames.Lookup(f.Name) != nil {
			kube.AddFlag(f)
		} else {
			rest.AddFlag(f)
		}
	})
	own.SortFlags = cmd.Flags().SortFlags
	for _, section := range []struct {
		title string
		flags *pflag.FlagSet
	}{{"Flags", own}, {"Global flags", rest}, {"Kubernetes flags", kube}} {
		if section.flags.HasAvailableFlags() {
			fmt.Fprintf(out, "\n%s:\n%s\n", section.title, strings.TrimRight(section.flags.FlagUsagesWrapped(120), "\n"))
		}
	}
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
	for _, group := range groups {
		fmt.Fprintf(out, "\n%s\n", group.Title)
		for _, sub := range cmd.Commands() {
			if sub.GroupID == group.ID && (sub.IsAvailableCommand() || sub.Name() == "help") {
				fmt.Fprintf(out, "  %-*s  %s\n", cmd.NamePadding(), sub.Name(), sub.Short)
			}
		}
	}
}
