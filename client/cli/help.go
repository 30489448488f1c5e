// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/env"
)

// Widths of the help: of a text that does not go to a terminal, and the fewest readable columns.
const (
	helpWidth      = 120
	narrowestWidth = 40
)

// helpColumns returns how wide the help may be, and whether it must be made to fit.
func helpColumns(e *env.Env) (width int, narrow bool) {
	columns, terminal := e.IsTerminal(e.Stdout)
	if !terminal || columns <= 0 || columns >= helpWidth {
		return helpWidth, false
	}
	return max(columns, narrowestWidth), true
}

// help prints the help of cmd. cobra's template would print all inherited flags in one heap, and
// kubectl's would bury ours; they are listed by the root and by connect.
func help(e *env.Env, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	out := cmd.OutOrStdout()
	width, narrow := helpColumns(e)
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	long, use, example := strings.TrimSpace(long), "  "+useLine(cmd), strings.TrimRight(cmd.Example, "\n")
	if narrow {
		long, use, example = refill(long, width), fill(use, width, "      "), refillRemarks(example, width)
	}
	fmt.Fprintf(out, "%s\n\nUsage:\n%s\n", long, use)
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(out, "\nAliases:\n  %s\n", strings.Join(append([]string{cmd.Name()}, cmd.Aliases...), ", "))
	}
	if example != "" {
		fmt.Fprintf(out, "\nExamples:\n%s\n", example)
	}
	helpCommands(out, cmd, width)
	helpFlags(out, cmd, width)
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\n%s\n",
			fill(fmt.Sprintf("Use \"%s COMMAND --help\" to read about a command.", cmd.CommandPath()),
				width, ""))
	}
}

func useLine(cmd *cobra.Command) string {
	if cmd.HasParent() && cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	return cmd.UseLine()
}

func helpCommands(out io.Writer, cmd *cobra.Command, columns int) {
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
				line := fmt.Sprintf("  %-*s  %s", width, sub.Name(), sub.Short)
				fmt.Fprintln(out, fill(line, columns, strings.Repeat(" ", width+4)))
			}
		}
	}
}

func helpFlags(out io.Writer, cmd *cobra.Command, columns int) {
	kubeNames := env.NewKubeFlags()
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
			sort(f, global) // the root's flags belong to every command
		}
	})
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { sort(f, global) })
	helpSection(out, "Flags", own, columns)
	helpSection(out, "Global flags", global, columns)
	if !cmd.HasParent() || cmd.Name() == "connect" {
		helpSection(out, "Kubernetes flags", kube, columns)
	} else if !cmd.HasAvailableSubCommands() {
		more := fmt.Sprintf("kubectl's flags, such as --context and --kubeconfig, say which cluster is meant: "+
			"see '%s --help'.", cmd.Root().Name())
		fmt.Fprintf(out, "\n%s\n", fill(more, columns, ""))
	}
}

func newSection(cmd *cobra.Command) *pflag.FlagSet {
	section := pflag.NewFlagSet("", pflag.ContinueOnError)
	section.SortFlags = cmd.Flags().SortFlags
	return section
}

func helpSection(out io.Writer, title string, flags *pflag.FlagSet, columns int) {
	if flags.HasAvailableFlags() {
		fmt.Fprintf(out, "\n%s:\n%s\n", title, strings.TrimRight(flags.FlagUsagesWrapped(columns), "\n"))
	}
}

// fill breaks a line between words so that it is no wider than width. Continuation lines begin with
// indent.
func fill(line string, width int, indent string) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	start := len(line) - len(strings.TrimLeft(line, " "))
	var out strings.Builder
	at := 0
	for i, word := range strings.SplitAfter(line[start:], " ") {
		length := utf8.RuneCountInString(strings.TrimRight(word, " "))
		switch {
		case i == 0:
			out.WriteString(line[:start])
			at = start
		case at+length > width:
			text := strings.TrimRight(out.String(), " ")
			out.Reset()
			out.WriteString(text + "\n" + indent)
			at = len(indent)
		}
		out.WriteString(word)
		at += utf8.RuneCountInString(word)
	}
	return strings.TrimRight(out.String(), " ")
}

// refill makes paragraphs as wide as allowed. Indented lines stay as they are.
func refill(text string, width int) string {
	var out []string
	paragraph := ""
	end := func() {
		if paragraph != "" {
			out = append(out, fill(paragraph, width, ""))
			paragraph = ""
		}
	}
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			end()
			out = append(out, line)
		case paragraph == "":
			paragraph = line
		default:
			paragraph += " " + line
		}
	}
	end()
	return strings.Join(out, "\n")
}

// refillRemarks breaks the remarks of examples. Command lines stay whole, so that they can be
// copied.
func refillRemarks(text string, width int) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  # ") {
			lines[i] = fill(line, width, "  # ")
		}
	}
	return strings.Join(lines, "\n")
}
