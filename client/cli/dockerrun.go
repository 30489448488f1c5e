package cli

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"sidestep.dev/sidestep/api/daemonpb"
)

// containerTools are the programs that --docker-run looks for, in this order.
var containerTools = []string{"docker", "podman"}

// variables are what a program that is run for an intercept finds in its environment.
func variables(i *daemonpb.InterceptInfo) []string {
	vars := []string{"TELEPRESENCE_INTERCEPT_ID=" + i.GetId()}
	if i.GetContainer() != "" {
		vars = append(vars, "TELEPRESENCE_CONTAINER="+i.GetContainer())
	}
	return vars
}

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

// inContainer is the program that runs a container to which the intercept's requests go.
func inContainer(tool string, i *daemonpb.InterceptInfo, port int32, args []string) (program, error) {
	address, local, err := net.SplitHostPort(i.GetDestination())
	if err != nil {
		return program{}, fmt.Errorf("publish %s of the container: %w", i.GetDestination(), err)
	}
	run := []string{tool, "run", "--rm"}
	name := containerName(args)
	if name == "" {
		name = fmt.Sprintf("intercept-%s-%s", i.GetName(), local)
		run = append(run, "--name", name)
	}
	run = append(run, "-p", fmt.Sprintf("%s:%d", net.JoinHostPort(address, local), port))
	for _, v := range variables(i) {
		run = append(run, "-e", v)
	}
	return program{args: slices.Concat(run, args), halt: []string{tool, "stop", name}}, nil
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
