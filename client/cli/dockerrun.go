package cli

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/envfile"
)

// containerTools are the programs that --docker-run looks for, in this order.
var containerTools = []string{"docker", "podman"}

// checkContainer refuses a command line for a container that cannot be run.
func checkContainer(args []string) error {
	if len(args) == 0 {
		return usagef("--docker-run needs an image, and what else `docker run` is to be given, after --")
	}
	for _, arg := range args {
		if name, _, _ := strings.Cut(arg, "="); name == "-d" || name == "--detach" {
			return usagef("%s would leave the container running in the background, and the intercept lasts as long as the container — leave it out", arg)
		}
	}
	return nil
}

// containerTool is the program that runs containers.
func (e *env) containerTool() (string, error) {
	for _, name := range containerTools {
		if path, err := e.lookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("--docker-run: neither %s is on the PATH — install one, or run the container by yourself and intercept with --port",
		strings.Join(containerTools, " nor "))
}

// container is what --docker-run is to run.
type container struct {
	tool string
	port int32 // that it listens on
	args []string
}

// inContainer is the program that runs a container to which the intercept's requests go. done removes what it needs on the disk.
func (e *env) inContainer(g *global, c container, i *daemonpb.InterceptInfo, environment *daemonpb.Environment) (p program, done func(), err error) {
	address, local, err := net.SplitHostPort(i.GetDestination())
	if err != nil {
		return program{}, nil, fmt.Errorf("publish %s of the container: %w", i.GetDestination(), err)
	}
	run := []string{c.tool, "run", "--rm"}
	name := containerName(c.args)
	if name == "" {
		name = fmt.Sprintf("intercept-%s-%s", i.GetName(), local)
		run = append(run, "--name", name)
	}
	run = append(run, "-p", fmt.Sprintf("%s:%d", net.JoinHostPort(address, local), c.port))
	done = func() {}
	of := i.GetContainer()
	if environment != nil {
		of = environment.GetContainer()
		var flags []string
		var left []envfile.Left
		flags, p.vars, left, done, err = containerEnvironment(envfile.Elsewhere(envfile.Parse(environment.GetVariables()), environment.GetDeclared()))
		if err != nil {
			return program{}, nil, err
		}
		e.tellLeft(g, "the container's environment", left)
		run = append(run, flags...)
	}
	for _, v := range settings(about(i, of)) {
		run = append(run, "-e", v)
	}
	p.args, p.halt = slices.Concat(run, c.args), []string{c.tool, "stop", name}
	return p, done, nil
}

// containerName is the name that the user gives to the container.
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
