// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/tests/apps/manifests"
)

// env is what the program takes from its surroundings.
type env struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	hostname       func() (string, error)
}

func newCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:           "apps",
		Short:         "Sample workloads and clients for them",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddCommand(
		newServeCommand(e), newLinesCommand(e), newGreeterCommand(e), newSidecarCommand(e),
		newDatagramsCommand(e), newSleepCommand(),
		newCallCommand(e), newAskCommand(e), newLoadCommand(e), newManifestsCommand(e),
	)
	return root
}

func newSleepCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "sleep",
		Short: "Do nothing until told to stop; a place to run clients from",
		Args:  cobra.NoArgs,
		Run:   func(command *cobra.Command, _ []string) { <-command.Context().Done() },
	}
}

func newManifestsCommand(e env) *cobra.Command {
	var options manifests.Options
	command := &cobra.Command{
		Use:   "manifests",
		Short: "Print the Kubernetes objects of the sample workloads",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			rendered, err := manifests.Render(options)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(e.stdout, rendered)
			return err
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Image, "image", "docker.io/sidestep/apps:v0.0.0-dev", "image with this program")
	flags.StringVar(&options.PullPolicy, "pull-policy", "Never", "Always, IfNotPresent or Never")
	flags.StringVar(&options.Namespace, "namespace", manifests.DefaultNamespace, "namespace, which is made too")
	flags.BoolVar(&options.KeepAlive, "keep-alive", false,
		"let connections within the chain live on between requests")
	return command
}

// identity is who a service says it is.
type identity struct {
	name, pod string
	linger    time.Duration
}

func (i *identity) addFlags(command *cobra.Command, e env, name string) {
	pod := e.getenv("POD_NAME")
	if pod == "" {
		// If this fails, there is no better name.
		pod, _ = e.hostname()
	}
	command.Flags().StringVar(&i.name, "name", or(e.getenv("SERVICE_NAME"), name),
		"name in the answers, or $SERVICE_NAME")
	command.Flags().StringVar(&i.pod, "pod", pod, "pod in the answers, or $POD_NAME")
	command.Flags().DurationVar(&i.linger, "linger", 0, "how long to go on serving after being told to stop")
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
