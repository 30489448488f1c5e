// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/env"
)

// newManCmd returns the hidden command that writes manual pages, for packagers.
func newManCmd(e *env.Env, g *env.Global) *cobra.Command {
	return &cobra.Command{
		Use:     "man-pages DIRECTORY",
		Short:   "Write a manual page for each command into a directory",
		Hidden:  true,
		Example: fmt.Sprintf("  %s man-pages /usr/local/share/man/man1", e.Name),
		Args:    env.Exactly(1, "the directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			n := 0
			for _, c := range documented(cmd.Root()) {
				path := filepath.Join(args[0], manName(c)+".1")
				if err := os.WriteFile(path, []byte(manPage(e, c)), 0o644); err != nil {
					return fmt.Errorf("write the manual pages: %w", err)
				}
				n++
			}
			e.Say(g, "Wrote %d manual pages to %s", n, args[0])
			return nil
		},
	}
}

// documented returns cmd and the commands below it that help lists.
func documented(cmd *cobra.Command) []*cobra.Command {
	found := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			found = append(found, documented(sub)...)
		}
	}
	return found
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage returns the manual page of cmd, in man(7).
func manPage(e *env.Env, cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag()
	var page strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&page, format+"\n", args...) }
	line(`.TH %q "1" "" %q %q`, strings.ToUpper(manName(cmd)), e.Name+" "+e.Version, e.Brand())
	line(".SH NAME\n%s \\- %s", roff(manName(cmd)), roff(cmd.Short))
	line(".SH SYNOPSIS\n.B %s", roff(useLine(cmd)))
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	line(".SH DESCRIPTION")
	for i, paragraph := range strings.Split(strings.TrimSpace(long), "\n\n") {
		if i > 0 {
			line(".PP")
		}
		line("%s", roff(paragraph))
	}
	manFlags(line, "OPTIONS", cmd.LocalFlags())
	manFlags(line, "GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		line(".SH EXAMPLES\n.nf\n%s\n.fi", roff(strings.TrimRight(cmd.Example, "\n")))
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, manName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			also = append(also, manName(sub))
		}
	}
	if len(also) > 0 {
		line(".SH SEE ALSO")
		for i, name := range also {
			comma := ","
			if i == len(also)-1 {
				comma = ""
			}
			line(".BR %s (1)%s", roff(name), comma)
		}
	}
	return page.String()
}

func manFlags(line func(string, ...any), title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	line(".SH %s", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + kind
		}
		line(".TP\n.B %s\n%s", roff(name), roff(usage))
	})
}

// roff escapes text for man(7): a backslash is not an escape, a hyphen stays one when it is copied,
// and no line begins with a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
