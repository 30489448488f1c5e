// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/nodeagent/privilege"
	"sidestep.dev/sidestep/nodeagent/steer"
	"sidestep.dev/sidestep/nodeagent/uplink"
)

// Env is what a command uses of the process that it runs in.
type Env struct {
	Args           []string // without the program's name
	Stdout, Stderr io.Writer
}

// OSEnv returns the environment of the process itself.
func OSEnv() Env { return Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr} }

// Main runs the command and returns the exit code.
func Main(env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cmd := NewCommand(env)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(env.Stderr, "sidestep-nodeagent: error: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	manager, caFile, tokenFile, node, bpffs, proc, datapath, httpAddress, logLevel, logFormat string
	clientAddresses                                                                           string
	drain                                                                                     time.Duration
	profile, allowHostNetwork, seccomp                                                        bool
	features                                                                                  privilege.Features
}

// NewCommand is the command line of sidestep-nodeagent.
func NewCommand(env Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           names.NodeAgent,
		Short:         "Steers the connections of intercepted pods on one Kubernetes node",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), env.Stderr) },
	}
	cmd.SetArgs(env.Args)
	cmd.SetOut(env.Stdout)
	cmd.SetErr(env.Stderr)
	o.register(cmd)
	cmd.AddCommand(newPurgeCommand(&o))
	return cmd
}

// register registers the flags.
func (o *options) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.manager, "manager",
		fmt.Sprintf("%s.%s.svc:%d", names.Manager, names.Sidestep, names.GRPCPort), "`address` of the manager")
	f.StringVar(&o.caFile, "ca-file", "/etc/sidestep/ca/ca.crt",
		"`file` with the certificate authority of the manager")
	f.StringVar(&o.tokenFile, "token-file", "/var/run/secrets/sidestep/token",
		"`file` with the token that identifies this node agent")
	f.StringVar(&o.node, "node", "", "`name` of the Kubernetes node (required)")
	cmd.PersistentFlags().StringVar(&o.proc, "proc", "/proc",
		"`directory` where all processes of the node are seen")
	f.StringVar(&o.datapath, "datapath", string(steer.Auto),
		"how connections are steered: auto, sk_lookup or tc")
	f.StringVar(&o.httpAddress, "http-address", fmt.Sprintf(":%d", names.HTTPPort),
		"`address` of /healthz, /readyz and /metrics; empty for none")
	f.DurationVar(&o.drain, "drain", 20*time.Second,
		"how long open connections may go on after the order to end")
	f.BoolVar(&o.allowHostNetwork, "allow-host-network", false,
		"let pods that use the node's network be intercepted; whatever else listens on the same port of the node is intercepted with them")
	f.StringVar(&o.clientAddresses, "client-addresses", preferred,
		"whether apps must be shown their clients' addresses: required leaves ports to apps that cannot be, "+
			"preferred steers them and shows the pod's own address")
	f.BoolVar(&o.features.Environment, "environment", true,
		"read the environment of containers where an intercept asks for it")
	f.BoolVar(&o.features.UDP, "udp", true, "steer UDP ports (needs CAP_NET_RAW)")
	f.BoolVar(&o.features.Takeover, "takeover", true,
		"end connections that are older than an intercept (needs CAP_NET_ADMIN and CAP_NET_RAW)")
	f.BoolVar(&o.seccomp, "seccomp", true,
		"install a seccomp filter that denies the system calls that the node agent never makes")
	f.BoolVar(&o.profile, "profile", false, "serve /debug/pprof/ on the HTTP address")
	cmd.PersistentFlags().StringVar(&o.bpffs, "bpffs", "/sys/fs/bpf",
		"`directory` where bpffs is, or is to be, mounted; it may hold no more of it than its directory sidestep")
	cmd.PersistentFlags().StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.PersistentFlags().StringVar(&o.logFormat, "log-format", "json", "json or text")
}

func newPurgeCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "purge",
		Short: "Remove what node agents have left in the kernel of this node, such as after one was killed and never started again",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return steer.Purge(o.bpffs, steer.WithProc(o.proc)) },
	}
}

// newLog returns the log, in the format of the manager's unless --log-format says otherwise.
func (o *options) newLog(stderr io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %s: use debug, info, warn or error", o.logLevel)
	}
	handler := slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(stderr, &handler)).With("node", o.node), nil
	case "text":
		return slog.New(slog.NewTextHandler(stderr, &handler)).With("node", o.node), nil
	}
	return nil, fmt.Errorf("--log-format %s: use json or text", o.logFormat)
}

// Values of --client-addresses.
const (
	preferred = "preferred"
	required  = "required"
)

// narrow gives up the system calls that the node agent does not need. Without the filter it works as
// well, and the log says so.
func (o *options) narrow(log *slog.Logger) {
	if !o.seccomp {
		log.Warn("no seccomp filter of its own is installed", "why", "--seccomp=false")
		return
	}
	uses := privilege.Uses{Mount: !steer.HasOwnMount(o.bpffs), Environment: o.features.Environment}
	if err := privilege.Narrow(uses); err != nil {
		log.Warn("no seccomp filter of its own is installed", "error", err)
		return
	}
	log.Info("seccomp filter installed for all threads", "mount", uses.Mount, "environment", uses.Environment)
}

func (o *options) run(ctx context.Context, stderr io.Writer) error {
	if o.node == "" {
		return errors.New("--node is missing: give the name of the Kubernetes node")
	}
	log, err := o.newLog(stderr)
	if err != nil {
		return err
	}
	datapath, err := steer.ParseDatapath(o.datapath)
	if err != nil {
		return fmt.Errorf("--datapath: %w", err)
	}
	if o.clientAddresses != preferred && o.clientAddresses != required {
		return fmt.Errorf("--client-addresses %s: use %s or %s", o.clientAddresses, preferred, required)
	}
	for _, file := range []string{o.caFile, o.tokenFile} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("check --ca-file and --token-file: %w", err)
		}
	}
	cfg := Config{
		Manager: o.manager, Security: uplink.Files(o.caFile, o.tokenFile), Node: o.node, BPFFS: o.bpffs,
		Proc:     o.proc,
		Datapath: datapath, Drain: o.drain, Profile: o.profile, AllowHostNetwork: o.allowHostNetwork, Log: log,
		RequireClientAddresses: o.clientAddresses == required,
		Off: privilege.Features{Environment: !o.features.Environment, UDP: !o.features.UDP,
			Takeover: !o.features.Takeover},
	}
	o.narrow(log)
	if o.httpAddress != "" {
		l, err := net.Listen("tcp", o.httpAddress)
		if err != nil {
			return fmt.Errorf("serve health and metrics (see --http-address): %w", err)
		}
		cfg.HTTP = l
	}
	reserveMemory()
	log.Info("starting", "version", version.Version, "kernel", kernel(), "manager", o.manager)
	return Run(ctx, cfg)
}
