// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/envfile"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// standardOutput is the file name that means standard output.
const standardOutput = "-"

// environmentFlags say where to write the container's environment.
type environmentFlags struct {
	file, json, syntax string
	keep               []string // names that would be left out otherwise
}

func (f *environmentFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.file, "env-file", "e", "",
		"Write the container's environment to this `FILE`, readable by its owner only; - is the standard output")
	flags.StringVar(&f.syntax, "env-syntax", string(envfile.Docker), "`SYNTAX` of --env-file: "+
		strings.Join(envfile.Syntaxes, ", "))
	flags.StringVarP(&f.json, "env-json", "j", "", "The same as JSON, to this `FILE`")
	flags.StringSliceVar(&f.keep, "env-keep", nil,
		"Keep the variable `NAME` of the container's environment, although programs can load code or take their "+
			"settings from it, for example JAVA_TOOL_OPTIONS; can be repeated, or a list")
}

func (f *environmentFlags) check(flags *pflag.FlagSet) error {
	recorded := flags.Lookup("output").Changed || flags.Lookup("format").Changed
	switch {
	case !slices.Contains(envfile.Syntaxes, f.syntax):
		return output.Usagef("--env-syntax %s: unknown", f.syntax).
			Advise("use one of %s", strings.Join(envfile.Syntaxes, ", "))
	case flags.Changed("env-syntax") && f.file == "":
		return output.Usagef("--env-syntax is of the file that --env-file writes, and there is none")
	case flags.Changed("env-file") && f.file == "", flags.Changed("env-json") && f.json == "":
		return output.Usagef("the name of the file for the environment is empty")
	case slices.ContainsFunc(f.keep, func(name string) bool { return !envfile.Name.MatchString(name) }):
		return output.Usagef("--env-keep %s: not the name of a variable", strings.Join(f.keep, ",")).
			Advise("write NAME, without a value")
	case f.file != "" && f.file == f.json:
		return output.Usagef("--env-file and --env-json name the same file")
	case f.printed() && recorded:
		return output.Usagef("the environment and the intercept cannot both be written to the standard output").
			Advise("leave out --output, or name a file")
	}
	return nil
}

// printed reports whether the environment goes to standard output.
func (f *environmentFlags) printed() bool {
	return f.file == standardOutput || f.json == standardOutput
}

// wanted returns what to ask the daemon for. For a command that is run, the environment is useful,
// but not always needed.
func (f *environmentFlags) wanted(command bool) daemonpb.InterceptRequest_Environment {
	switch {
	case f.file != "" || f.json != "":
		return daemonpb.InterceptRequest_REQUIRED
	case command:
		return daemonpb.InterceptRequest_IF_ALLOWED
	}
	return daemonpb.InterceptRequest_NOT_WANTED
}

// environmentFile is a file to write.
type environmentFile struct {
	name   string
	syntax envfile.Syntax
	file   *envfile.File // nil: the standard output
}

// open makes sure that the files can be written, before anything is intercepted.
func (f *environmentFlags) open() (files []*environmentFile, err error) {
	for _, to := range []*environmentFile{{name: f.file, syntax: envfile.Syntax(f.syntax)},
		{name: f.json, syntax: envfile.JSON}} {
		if to.name == "" {
			continue
		}
		if to.name != standardOutput {
			if to.file, err = envfile.Create(to.name); err != nil {
				discard(files)
				return nil, reason.Advise(fmt.Errorf("%w", err),
					"choose another file")
			}
		}
		files = append(files, to)
	}
	return files, nil
}

func discard(files []*environmentFile) {
	for _, f := range files {
		if f.file != nil {
			f.file.Discard()
		}
	}
}

// writeEnvironment writes the files, and warns of variables that a file cannot express.
func writeEnvironment(e *env.Env, g *env.Global, files []*environmentFile, all []envfile.Variable) error {
	for _, f := range files {
		text, left := envfile.Format(f.syntax, all)
		where := f.name
		if f.file == nil {
			where = "what is printed"
		}
		tellLeft(e, g, where, left)
		if f.file == nil {
			if _, err := e.Stdout.Write(text); err != nil {
				return err
			}
		} else if err := f.file.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// imported returns the part of the container's environment that is useful on a laptop, nil if there
// is none. It notes in one line what it leaves out that the user might miss.
func imported(e *env.Env, g *env.Global, environment *daemonpb.Environment, keep []string) []envfile.Variable {
	if environment == nil {
		return nil
	}
	kept, left := envfile.Elsewhere(envfile.Parse(environment.GetVariables()), environment.GetDeclared(), keep)
	if len(left) == 0 {
		return kept
	}
	hint, names := "", make([]string, len(left))
	for i, l := range left {
		names[i] = layout.Safe(l.Name)
		if envfile.Name.MatchString(l.Name) {
			hint = "; keep one with --env-keep NAME"
		}
	}
	e.Warn(g, fmt.Sprintf("left out of the container's environment, because programs could load code or take "+
		"their settings from it: %s%s", strings.Join(names, ", "), hint))
	return kept
}

// tellLeft notes which variables were left out, and why.
func tellLeft(e *env.Env, g *env.Global, where string, left []envfile.Left) {
	names := map[string][]string{}
	var reasons []string
	for _, l := range left {
		if names[l.Why] == nil {
			reasons = append(reasons, l.Why)
		}
		name := layout.Safe(l.Name)
		names[l.Why] = append(names[l.Why], name)
	}
	for _, why := range reasons {
		e.Warn(g, fmt.Sprintf("%snot in %s, because %s: %s", env.Warning, where, why,
			strings.Join(names[why], ", ")))
	}
}

// variables returns the variables of a program that runs for an intercept, in addition to those of
// this process: facts about the intercept and, if there is one, the environment of the container.
func variables(i *daemonpb.InterceptInfo, environment *daemonpb.Environment,
	kept []envfile.Variable) []envfile.Variable {
	container := i.GetContainer()
	if environment != nil {
		container = environment.GetContainer()
	}
	return envfile.With(kept, about(i, container)...)
}

// about returns facts about an intercept, by the names that Telepresence has for them.
func about(i *daemonpb.InterceptInfo, container string) []envfile.Variable {
	all := []envfile.Variable{{Name: "TELEPRESENCE_INTERCEPT_ID", Value: i.GetId()}}
	if container != "" {
		all = append(all, envfile.Variable{Name: "TELEPRESENCE_CONTAINER", Value: container})
	}
	return all
}

// settings returns NAME=VALUE, as processes take them.
func settings(all []envfile.Variable) []string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = v.Name + "=" + v.Value
	}
	return texts
}

// unmake leaves an intercept that was made in vain. An intercept that existed before stays.
func unmake(ctx context.Context, s *env.Daemon, name string, before bool, cause error) error {
	if before {
		return reason.Advise(cause, "intercept %s is there", name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), env.Afterwards)
	defer cancel()
	if _, err := s.Leave(ctx, &daemonpb.LeaveRequest{Name: name}); err != nil {
		return errors.Join(cause, fmt.Errorf("leave intercept %s: %w", name, err))
	}
	return reason.Advise(cause, "nothing is intercepted")
}

// containerEnvironment returns the flags with which docker or podman run takes an environment, and
// the values that their file cannot hold because they have several lines. None of it goes into the
// environment of the tool, which would take settings from it, or onto its command line, which every
// user of this machine can read. done removes the file.
func containerEnvironment(all []envfile.Variable) (flags []string, left []envfile.Left, done func(), err error) {
	text, left := envfile.Format(envfile.Docker, all)
	file, err := os.CreateTemp("", "sidestep-env-*") // 0600
	if err != nil {
		return nil, nil, nil, fmt.Errorf("write the environment for the container: %w", err)
	}
	done = func() { _ = os.Remove(file.Name()) }
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		done()
		return nil, nil, nil, fmt.Errorf("write the environment for the container: %w", err)
	}
	return []string{"--env-file", file.Name()}, left, done, nil
}
