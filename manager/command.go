// SPDX-License-Identifier: Apache-2.0

// Package manager is the program that runs in the cluster. It resolves intercepts, tells node
// agents what to steer, and relays connections to laptops.
package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/version"
)

// Env is what the program gets from its surroundings.
type Env struct {
	Args   []string
	Stderr io.Writer
	Getenv func(string) string
}

// OSEnv returns the process's own environment.
func OSEnv() Env { return Env{Args: os.Args[1:], Stderr: os.Stderr, Getenv: os.Getenv} }

// Main runs the program until a signal ends it, and returns its exit code.
func Main(env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	cmd := NewCommand(env)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(env.Stderr, "sidestep-manager: error:", err)
		return 1
	}
	return 0
}

// Options are the program's flags.
type Options struct {
	GRPCAddress         string
	HTTPAddress         string
	ConnectAddress      string
	TLSDir              string
	TLSSecret           string
	Namespace           string
	SessionGrace        time.Duration
	AgentServiceAccount string
	TokenAudience       string
	OlderLaptops        bool
	ReviewRights        bool
	ReviewEvery         time.Duration // 0: access.ReviewEvery
	LogLevel            slog.Level
	Kubeconfig          string
}

// NewCommand returns the command line.
func NewCommand(env Env) *cobra.Command {
	o := Options{Namespace: ownNamespace(env)}
	cmd := &cobra.Command{
		Use:           names.Manager,
		Short:         "Resolve intercepts, tell node agents what to steer, and pass connections on to laptops",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewJSONHandler(env.Stderr, &slog.HandlerOptions{Level: o.LogLevel}))
			klog.SetSlogLogger(log) // for messages of client-go, such as missing rights
			leaveRoom()
			m, err := o.manager(log)
			if err != nil {
				return err
			}
			return m.Run(cmd.Context())
		},
	}
	cmd.SetArgs(env.Args)
	cmd.SetErr(env.Stderr)
	f := cmd.Flags()
	f.StringVar(&o.GRPCAddress, "grpc-address", port(names.GRPCPort), "where node agents and laptops connect, over TLS")
	f.StringVar(&o.HTTPAddress, "http-address", port(names.HTTPPort), "where /healthz, /readyz and /metrics are served")
	f.StringVar(&o.ConnectAddress, "connect-address", port(names.ConnectPort),
		"where laptops connect by upgraded HTTP requests")
	f.StringVar(&o.TLSDir, "tls-dir", "/etc/sidestep/tls",
		"directory of tls.crt and tls.key; they are read again when they change")
	f.StringVar(&o.TLSSecret, "tls-secret", "",
		"`name` of the Secret in which the manager keeps its authority and certificate, instead of --tls-dir")
	f.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace of the installation")
	f.DurationVar(&o.SessionGrace, "session-grace", 15*time.Minute,
		"how long intercepts outlive a laptop that is away")
	f.StringVar(&o.AgentServiceAccount, "agent-service-account", names.NodeAgent,
		"service account of the node agents")
	f.StringVar(&o.TokenAudience, "token-audience", names.Manager, "audience of the node agents' tokens")
	f.BoolVar(&o.OlderLaptops, "older-laptops", false,
		"admit laptops of the version before, which do not prove who their user is")
	f.BoolVar(&o.ReviewRights, "review-rights", true,
		"ask the API server again, while an intercept lasts, whether its user still has the rights that it needs")
	f.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig file, to run outside of a cluster")
	return cmd
}

// leaveRoom lowers GOMEMLIMIT, which the chart sets to the container's limit: the garbage collector
// comes near it, and the kernel kills a process whose pages altogether go beyond it.
func leaveRoom() {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// port returns the address of a port on all interfaces.
func port(number int) string { return fmt.Sprintf(":%d", number) }

func ownNamespace(env Env) string {
	if ns := env.Getenv("POD_NAMESPACE"); ns != "" {
		return ns
	}
	if raw, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
		return strings.TrimSpace(string(raw))
	}
	return names.Sidestep
}

func (o *Options) manager(log *slog.Logger) (*Manager, error) {
	if o.SessionGrace <= 0 {
		return nil, errors.New("--session-grace must be more than zero, such as 15m")
	}
	var config *rest.Config
	var err error
	if o.Kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API (outside of a cluster use --kubeconfig): %w", err)
	}
	c, err := NewClient(config)
	if err != nil {
		return nil, err
	}
	return New(*o, c, log)
}
