// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of the tool.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/cluster"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
	"sidestep.dev/sidestep/tests/cluster/internal/upstream"
)

// Env is what commands get from their surroundings.
type Env struct {
	Stdin          *os.File
	Stdout, Stderr *os.File
	Getenv         func(string) string
}

// RealEnv is this process's.
func RealEnv() Env {
	return Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
}

// exitCode is the error of a program that ran and has said itself what was wrong.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs one command and returns the code to exit with.
func Main(args []string, env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends this at once
	root := New(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(env.Stderr, "cluster: interrupted; \"cluster up\" goes on from here, \"cluster down\" removes what there is")
		return 130
	default:
		fmt.Fprintf(env.Stderr, "cluster: %s\n", err)
		return 1
	}
}

// New builds the commands.
func New(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes of several nodes on this one machine",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.AddCommand(
		newUp(env), newBuild(env), newDown(env), newStatus(env), newLoadImage(env), newExec(env), newKubeconfig(env),
		newKubectl(env),
	)
	return root
}

// open finds the cluster that the environment names.
func open(env Env, out io.Writer) (*cluster.Cluster, error) {
	state := env.Getenv("SIDESTEP_CLUSTER_STATE")
	if state == "" {
		state = "/var/lib/sidestep-cluster"
	}
	cache := env.Getenv("SIDESTEP_CLUSTER_CACHE")
	if cache == "" {
		home := env.Getenv("HOME")
		if home == "" {
			return nil, errors.New("neither SIDESTEP_CLUSTER_CACHE nor HOME is set")
		}
		cache = filepath.Join(home, ".cache", "sidestep-cluster")
	}
	for _, dir := range []*string{&state, &cache} {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = absolute
	}
	return &cluster.Cluster{State: state, Cache: upstream.Cache{Dir: cache}, Out: progress.New(out)}, nil
}

func newUp(env Env) *cobra.Command {
	var p plan.Plan
	var family string
	var wait time.Duration
	command := &cobra.Command{
		Use:   "up",
		Short: "Bring the cluster up, or repair it, and wait until it is ready",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			p.Family = plan.Family(family)
			c, err := open(env, env.Stdout)
			if err != nil {
				return err
			}
			c.Wait = wait
			// Without settings the cluster that is up is repaired, whatever its own are.
			settings := []string{"name", "nodes", "ip-family", "host-link"}
			if present, err := c.Plan(); err == nil && !slices.ContainsFunc(settings, command.Flags().Changed) {
				p = present
			}
			return c.Up(command.Context(), p)
		},
	}
	command.Flags().StringVar(&p.Name, "name", "sidestep",
		"what the names of namespaces, cgroups and devices begin with")
	command.Flags().IntVar(&p.Nodes, "nodes", 2, "number of nodes")
	command.Flags().StringVar(&family, "ip-family", string(plan.IPv4), "ipv4 or dual")
	command.Flags().BoolVar(&p.HostLink, "host-link", true,
		"make the API server reachable from this machine itself")
	command.Flags().DurationVar(&wait, "wait", 3*time.Minute, "how long each part may take to become ready")
	return command
}

func newBuild(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the programs of a cluster into the cache, and start nothing",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := open(env, env.Stdout)
			if err != nil {
				return err
			}
			return c.Build(command.Context())
		},
	}
}

func newDown(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and remove everything but the cache",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := open(env, env.Stdout)
			if err != nil {
				return err
			}
			if err := c.Down(command.Context()); !errors.Is(err, cluster.ErrDown) {
				return err
			}
			c.Out.Printf("no cluster is up")
			return nil
		},
	}
}

func newStatus(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell how each part of the cluster is",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := open(env, env.Stderr)
			if err != nil {
				return err
			}
			return c.Status(command.Context(), env.Stdout)
		},
	}
}

func newLoadImage(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "load-image TAR...",
		Short: "Bring image tarballs to all nodes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, tarballs []string) error {
			c, err := open(env, env.Stdout)
			if err != nil {
				return err
			}
			p, err := c.Plan()
			if err != nil {
				return err
			}
			title := fmt.Sprintf("load %d images on %d nodes", len(tarballs), p.Nodes)
			return c.Out.Step(title, func() error { return c.LoadImages(p, tarballs) })
		},
	}
}
