// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/cluster"
	"sidestep.dev/sidestep/tests/cluster/internal/fabric"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/upstream"
)

func newExec(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "exec MACHINE -- COMMAND [ARGUMENT...]",
		Short: "Run a command on a node, on the control plane or on the laptop",
		Long: `Run a command on a machine: node1 and so on, control-plane or laptop.

A node and the control plane have their own network, mounts, processes, host name and cgroups; the laptop is this
machine with another network. The cluster's programs, kubectl among them, are in the command's PATH.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := open(env, env.Stderr)
			if err != nil {
				return err
			}
			p, err := c.Plan()
			if err != nil {
				return err
			}
			name, args := args[0], args[1:]
			if !slices.Contains(p.Machines(), name) {
				return fmt.Errorf("there is no machine %q; there are %s", name,
					strings.Join(p.Machines(), ", "))
			}
			if name == plan.Laptop {
				path := []string{c.Cache.Path(upstream.Kubernetes())}
				return machine.ExecInNetns(fabric.Path(p, name), args, os.Environ(), path)
			}
			return onMachine(env, c, p, name, args)
		},
	}
}

func onMachine(env Env, c *cluster.Cluster, p plan.Plan, name string, args []string) error {
	m, err := c.Machine(p, name)
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	// The terminal sends its signals to the command, too; this process has to outlive them. Others
	// are handed on.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	command, err := m.Run(machine.Command{
		Args: args, Path: c.ProgramDirs(), Dir: dir, Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr,
	})
	if err != nil {
		return err
	}
	go func() {
		for received := range signals {
			if received == unix.SIGTERM || received == unix.SIGHUP {
				command.Process.Signal(received)
			}
		}
	}()
	return programError(command.Wait())
}

// programError turns the failure of a program into the code to exit with, as a shell does.
func programError(err error) error {
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		return err
	}
	if status := failed.Sys().(syscall.WaitStatus); status.Signaled() {
		return exitCode(128 + int(status.Signal()))
	}
	return exitCode(failed.ExitCode())
}

func newKubectl(env Env) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl [ARGUMENT...]",
		Short:              "Run the cluster's own kubectl as its administrator",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := open(env, env.Stderr)
			if err != nil {
				return err
			}
			p, err := c.Plan()
			if err != nil {
				return err
			}
			program := filepath.Join(c.Cache.Path(upstream.Kubernetes()), "kubectl")
			environment := append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
			return machine.ExecInNetns(fabric.Path(p, plan.ControlPlane),
				append([]string{program}, args...), environment, nil)
		},
	}
}

func newKubeconfig(env Env) *cobra.Command {
	var user string
	var groups []string
	var path bool
	command := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print a kubeconfig: the administrator's, or one made for a user",
		Long: `Print the administrator's kubeconfig, or one with a new certificate for a user in any number of groups. It works
from the laptop and, unless the cluster was brought up with --host-link=false, from this machine itself.`,
		Args: cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			if user == "" && len(groups) > 0 || user != "" && path {
				return errors.New("--group needs --user, and --path is for the administrator's alone")
			}
			c, err := open(env, env.Stderr)
			if err != nil {
				return err
			}
			p, err := c.Plan()
			if err != nil {
				return err
			}
			if path {
				fmt.Fprintln(env.Stdout, c.Kubeconfig())
				return nil
			}
			var text []byte
			if user == "" {
				text, err = os.ReadFile(c.Kubeconfig())
			} else {
				text, err = mint(c, p, user, groups)
			}
			if err != nil {
				return err
			}
			_, err = env.Stdout.Write(text)
			return err
		},
	}
	command.Flags().StringVar(&user, "user", "", "make a kubeconfig for this user")
	command.Flags().StringArrayVar(&groups, "group", nil, "a group that the user is in; may be repeated")
	command.Flags().BoolVar(&path, "path", false, "print the path of the administrator's kubeconfig instead")
	return command
}

func mint(c *cluster.Cluster, p plan.Plan, user string, groups []string) ([]byte, error) {
	authority, err := c.Authority()
	if err != nil {
		return nil, err
	}
	return authority.ClientKubeconfig(p.Name, p.Server(), user, groups...)
}
