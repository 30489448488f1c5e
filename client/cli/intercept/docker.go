// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/envfile"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// containerTools are the programs that --docker-run looks for, in this order.
var containerTools = []string{"docker", "podman"}

// dockerFlags say which container to run.
type dockerFlags struct {
	run          bool
	build, debug string // contexts of images to build
	options      []string
}

// placeholder stands for the built image in the arguments after --.
const placeholder = "IMAGE"

func (f *dockerFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.run, "docker-run", false,
		"Run a container with docker or podman, as its run command does with what is after --. The --port is "+
			"then LOCAL:CONTAINER[:ID]")
	flags.StringVar(&f.build, "docker-build", "",
		"Build an image from this `CONTEXT`, a directory or URL, and run it as --docker-run does; "+
			placeholder+" stands for it among what is after --, if there is anything")
	flags.StringVar(&f.debug, "docker-debug", "",
		"Same as --docker-build `CONTEXT`, in a container in which a debugger can work (SYS_PTRACE, no AppArmor)")
	flags.StringArrayVar(&f.options, "docker-build-opt", nil,
		"`OPTION` of docker build, as in tag=orders:dev; can be repeated")
}

// wanted reports whether a container has to be run.
func (f *dockerFlags) wanted() bool { return f.run || f.context() != "" }

// context returns the context of the image to build.
func (f *dockerFlags) context() string { return cmp.Or(f.build, f.debug) }

func (f *dockerFlags) check(args []string) error {
	given := 0
	for _, is := range []bool{f.run, f.build != "", f.debug != ""} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return output.Usagef("--docker-run, --docker-build and --docker-debug are three ways to run one container").
			Advise("use one of them")
	case f.context() == "" && len(f.options) > 0:
		return output.Usagef("--docker-build-opt is for --docker-build and --docker-debug, and there is neither")
	case given == 0:
		return nil
	case f.context() == "":
		return checkContainer(args)
	case len(args) > 0 && !slices.Contains(args, placeholder):
		return output.Usagef("after -- write %s where the image goes: before it are options of docker run, "+
			"behind it the container's command", placeholder)
	}
	return checkDetached(args)
}

// image builds the image, if there is one to build, and returns the arguments of docker run.
func image(ctx context.Context, e *env.Env, tool string, f dockerFlags, args []string) ([]string, error) {
	if f.context() == "" {
		return args, nil
	}
	dir, err := os.MkdirTemp("", "sidestep-image-*")
	if err != nil {
		return nil, fmt.Errorf("build the image: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "id")
	command := []string{tool, "build", "--iidfile", file}
	for _, o := range f.options {
		command = append(command, "--"+o)
	}
	code, err := e.Run(ctx, env.Program{Args: append(command, f.context()), Aside: true})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s build ended with exit code %d", filepath.Base(tool), code)
	}
	var id []byte
	if err == nil {
		id, err = os.ReadFile(file)
	}
	if image := strings.TrimSpace(string(id)); err == nil && image != "" {
		return f.with(image, args), nil
	}
	return nil, reason.Advise(fmt.Errorf("build the image from %s: %w", f.context(),
		cmp.Or(err, errors.New("it has no ID"))), "nothing is intercepted")
}

// with puts the image where its placeholder is.
func (f *dockerFlags) with(image string, args []string) []string {
	args = slices.Clone(args)
	if len(args) == 0 {
		args = []string{placeholder}
	}
	args[slices.Index(args, placeholder)] = image
	if f.debug != "" {
		args = append([]string{"--security-opt", "apparmor=unconfined", "--cap-add", "SYS_PTRACE"}, args...)
	}
	return args
}

// checkContainer refuses a command line that runs no container.
func checkContainer(args []string) error {
	if len(args) == 0 {
		return output.Usagef("--docker-run needs an image, and what else `docker run` is to be given, after --")
	}
	return checkDetached(args)
}

// checkDetached refuses a container that would outlive its intercept. Arguments after the
// placeholder are the container's own.
func checkDetached(args []string) error {
	if at := slices.Index(args, placeholder); at >= 0 {
		args = args[:at]
	}
	for _, arg := range args {
		if name, _, _ := strings.Cut(arg, "="); name == "-d" || name == "--detach" {
			return output.Usagef("%s would leave the container running in the background, and the intercept lasts "+
				"as long as the container", arg).
				Advise("leave it out")
		}
	}
	return nil
}

// containerTool returns the program that runs containers.
func containerTool(e *env.Env) (string, error) {
	for _, name := range containerTools {
		if path, err := e.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", reason.Advise(fmt.Errorf("--docker-run: neither %s is on the PATH", strings.Join(containerTools, " nor ")),
		"install one, or run the container by yourself and intercept with --port")
}

// container is what --docker-run runs.
type container struct {
	tool string
	port int32 // on which it listens
	args []string
}

// inContainer returns the program that runs a container for the intercept's requests. done removes
// the program's temporary files.
func inContainer(e *env.Env, g *env.Global, c container, i *daemonpb.InterceptInfo,
	environment *daemonpb.Environment, kept []envfile.Variable) (p env.Program, done func(), err error) {
	address, local, err := net.SplitHostPort(i.GetDestination())
	if err != nil {
		return env.Program{}, nil, fmt.Errorf("publish %s of the container: %w", i.GetDestination(), err)
	}
	run := []string{c.tool, "run", "--rm"}
	name := containerName(c.args)
	if name == "" {
		name = fmt.Sprintf("intercept-%s-%s", i.GetName(), local)
		run = append(run, "--name", name)
	}
	publish := fmt.Sprintf("%s:%d", net.JoinHostPort(address, local), c.port)
	if i.GetProtocol() != "" {
		publish += "/" + strings.ToLower(i.GetProtocol())
	}
	run = append(run, "-p", publish)
	done = func() {}
	of := i.GetContainer()
	if environment != nil {
		of = environment.GetContainer()
		var flags []string
		var left []envfile.Left
		if flags, left, done, err = containerEnvironment(kept); err != nil {
			return env.Program{}, nil, err
		}
		tellLeft(e, g, "the container's environment", left)
		run = append(run, flags...)
	}
	for _, v := range settings(about(i, of)) {
		run = append(run, "-e", v)
	}
	p.Args, p.Halt = slices.Concat(run, c.args), []string{c.tool, "stop", name}
	return p, done, nil
}

// containerName returns the value of --name in the arguments of docker run.
func containerName(args []string) string {
	for i, arg := range args {
		if name, ok := strings.CutPrefix(arg, "--name="); ok {
			return name
		}
		if arg == "--name" && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}
