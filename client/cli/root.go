// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/progress"
)

// defaultManagerNamespace is where the traffic manager is unless --manager-namespace says
// otherwise.
const defaultManagerNamespace = "sidestep"

// The groups of commands in the help of the root.
const (
	groupSession = "session"
	groupTraffic = "traffic"
	groupInstall = "install"
	groupOther   = "other"
)

// global are the values of the flags that every command has.
type global struct {
	kube             *pflag.FlagSet
	namespace        string
	managerNamespace string
	quiet            bool
	progress         string

	format string          // of the output
	said   strings.Builder // what a command without a record has said when another format than text is wanted
}

// main runs the command line args and returns the exit code.
func (e *env) main(ctx context.Context, args []string) int {
	g := &global{kube: newKubeFlags(), format: formatText}
	root := newRootCmd(e, g)
	root.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		if g.format = outputOf(cmd); g.format == formatText {
			g.format = wantedFormat(args) // a wrong flag ends the parsing before --output is reached
		}
		return e.fail(ctx, g, cmd, err)
	}
	if g.said.Len() > 0 {
		if err := e.write(g.format, envelope{Cmd: commandName(cmd), Stdout: g.said.String()}); err != nil {
			return e.fail(ctx, g, cmd, err)
		}
	}
	return 0
}

func newRootCmd(e *env, g *global) *cobra.Command {
	root := &cobra.Command{
		Use:   e.name + " COMMAND",
		Short: e.brand() + " sends one service's requests to your laptop",
		Long: e.brand() + ` sends the requests of one Kubernetes service, all of them or those that match, to a process on your
laptop. Everybody else's requests keep reaching the pods, and no pod is changed or restarted.`,
		Example: fmt.Sprintf(`  # Say which cluster, see what there is, and take the requests that carry your header
  %[1]s connect
  %[1]s list
  %[1]s intercept orders --port 9000 --http-header auto

  # And stop
  %[1]s leave orders
  %[1]s quit`, e.name),
		Version:                    e.version,
		Args:                       unknownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			g.format = outputOf(cmd)
			return checkGlobal(cmd, args)
		},
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	addGlobalFlags(root, g)
	root.AddGroup(
		&cobra.Group{ID: groupSession, Title: "Session commands:"},
		&cobra.Group{ID: groupTraffic, Title: "Traffic commands:"},
		&cobra.Group{ID: groupInstall, Title: "Installation commands:"},
		&cobra.Group{ID: groupOther, Title: "Other commands:"},
	)
	root.AddCommand(
		newConnectCmd(e, g), newQuitCmd(e, g), newStatusCmd(e, g),
		newListCmd(e, g), newInterceptCmd(e, g), newWiretapCmd(e, g), newLeaveCmd(e, g),
		newHelmCmd(e, g), newUninstallCmd(e, g),
		newVersionCmd(e, g), newConfigCmd(e, g), newLogLevelCmd(e, g), newGatherLogsCmd(e, g),
		newListContextsCmd(e, g), newListNamespacesCmd(e, g), newManCmd(e, g), newDaemonCmd(e),
	)
	root.AddCommand(absentCommands()...)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("")
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Example = fmt.Sprintf(
			"  # In this shell, and in the next ones if the line is in ~/.bashrc\n  source <(%[1]s completion bash)", e.name)
	}
	root.SetHelpFunc(e.help)
	root.SetUsageFunc(func(cmd *cobra.Command) error { e.help(cmd, nil); return nil })
	completeGlobals(e, root, g)
	return root
}

// addGlobalFlags adds what every command understands, in the spelling of each generation.
func addGlobalFlags(root *cobra.Command, g *global) {
	flags := root.PersistentFlags()
	flags.AddFlagSet(g.kube)
	flags.StringVarP(&g.namespace, "namespace", "n", "",
		"Namespace of the workload (default: the session's, else the kubeconfig's)")
	flags.StringVar(&g.managerNamespace, "manager-namespace", defaultManagerNamespace,
		"Namespace of the traffic manager")
	flags.String("output", formatText, `Format of the output: "default", "json", "yaml" or "json-stream"`)
	flags.BoolVar(&g.quiet, "quiet", false, "Print results and errors, and nothing else")
	flags.StringVar(&g.progress, "progress", "auto", `How progress is shown: "auto", "tty", "plain" or "quiet"`)
	flags.String("format", "", "Same as --output")
	flags.Bool("no-report", false, "Nothing is ever reported, with this flag or without")
	flags.String("use", "", "Name of one connection among several")
	flags.Bool("docker", false, "Run the daemon in a container")
	for _, name := range []string{"format", "no-report", "use", "docker", "progress"} {
		_ = flags.MarkHidden(name)
	}
}

// formats are the values of --output.
var formats = []string{formatText, formatJSON, formatYAML, formatStream}

// unknownCommand is what the root does with words that are no command.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("invalid subcommand %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usagef("%s — did you mean %s?", text, strings.Join(near, " or "))
	}
	return usagef("%s — `%s --help` lists them", text, cmd.CommandPath())
}

// checkGlobal refuses what no command can do.
func checkGlobal(cmd *cobra.Command, _ []string) error {
	flags := cmd.Flags()
	for _, name := range []string{"output", "format"} {
		if v, err := flags.GetString(name); err == nil && flags.Changed(name) && !slices.Contains(formats, v) {
			return usagef("--%s %s: unknown format — use %s", name, v, strings.Join(formats, ", "))
		}
	}
	if v, err := flags.GetString("progress"); err == nil &&
		!slices.Contains([]string{"auto", "tty", "plain", "quiet"}, v) {
		return usagef("--progress %s: unknown style — use auto, tty, plain or quiet", v)
	}
	if flags.Changed("use") {
		return unavailable("--use is", "there is one connection at a time, so leave it out")
	}
	if v, err := flags.GetBool("docker"); err == nil && v {
		return unavailable("--docker is",
			"leave it out: the daemon needs no root rights and changes no network of this machine")
	}
	return nil
}

// wantedFormat is the format that the arguments ask for, whatever else is wrong with them.
func wantedFormat(args []string) string {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		name, value, ok := strings.Cut(arg, "=")
		if name != "--output" && name != "--format" {
			continue
		}
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		if slices.Contains(formats, value) {
			return value
		}
	}
	return formatText
}

// outputOf is the format that was asked for; cmd's flags may be half parsed when there was an error
// in them.
func outputOf(cmd *cobra.Command) string {
	for _, name := range []string{"output", "format"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			if v := f.Value.String(); slices.Contains(formats, v) {
				return v
			}
		}
	}
	for _, name := range []string{"json"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "true" {
			return formatJSON
		}
	}
	return formatText
}

// paint is the colours for a stream.
func (e *env) paint(stream any) layout.Paint {
	_, terminal := e.isTerminal(stream)
	return layout.Paint{On: terminal && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"}
}

// line is the progress of a command.
func (e *env) line(g *global) *progress.Line {
	width := func() int { columns, _ := e.isTerminal(e.stderr); return columns }
	style := progress.None
	_, terminal := e.isTerminal(e.stderr)
	switch {
	case g.quiet || g.progress == "quiet":
	case g.progress == "plain":
		style = progress.Plain
	case g.progress == "tty", terminal && e.getenv("TERM") != "dumb":
		style = progress.Spinner
	}
	return progress.New(e.stderr, style, width)
}

// note tells what happened besides the result.
func (e *env) note(g *global, format string, args ...any) {
	if !g.quiet {
		fmt.Fprintf(e.stderr, format+"\n", args...)
	}
}

// warn tells what is not as it should be and does not hinder. The daemon marks what it warns of, so
// that the mark may be there already.
func (e *env) warn(g *global, text string) {
	for strings.HasPrefix(text, warning) {
		text = strings.TrimPrefix(text, warning)
	}
	e.note(g, "%s %s", e.paint(e.stderr).Odd("warning:"), e.renamed(text))
}

// say prints what a command without a record has done.
func (e *env) say(g *global, format string, args ...any) {
	switch {
	case g.format != formatText:
		fmt.Fprintf(&g.said, format+"\n", args...)
	case !g.quiet:
		fmt.Fprintf(e.stdout, format+"\n", args...)
	}
}

// exactly checks the number of words after the command.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return usagef("%s is missing — usage: %s", what, cmd.UseLine())
		case len(args) > n:
			return usagef("too many arguments: %s — usage: %s", strings.Join(args[n:], " "), cmd.UseLine())
		}
		return nil
	}
}
