// SPDX-License-Identifier: Apache-2.0

// Package env is the surroundings of commands: streams, clock, the flags that every command has,
// the user daemon, the cluster, and programs that run on this terminal.
package env

import (
	"context"
	"io"
	"io/fs"
	"strings"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/install"
)

// ForegroundCommand is what the daemon's own process runs.
const ForegroundCommand = "daemon-foreground"

// Env is what commands see of their surroundings, so that a test can replace it.
type Env struct {
	Name    string // base name of os.Args[0]: sidestep or telepresence
	Version string

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time
	// LogFile is where the daemon of this user logs.
	LogFile func() string
	// IsTerminal reports whether a stream, one of the three above, is a terminal, and how many
	// columns it has.
	IsTerminal func(stream any) (columns int, ok bool)
	WorkingDir func() (string, error)

	// Patience bounds the wait for an answer of the daemon. hung is the error if there is none.
	Patience time.Duration
	Hung     func() error
	// Dial fails with an error that NotRunning recognizes if there is no daemon.
	Dial func(context.Context) (daemonpb.DaemonClient, io.Closer, error)
	// Launch starts a daemon and returns once it listens.
	Launch func(context.Context) error
	// Saved reports whether a daemon that died left a session for the next one to resume.
	Saved func() bool
	// Clean removes what daemons leave on disk. No daemon may be running.
	Clean func() error
	// Foreground is the daemon itself.
	Foreground func(context.Context) error

	Chart fs.FS // the chart's files, Chart.yaml at its root
	// Cluster connects to the cluster without the daemon, for what is done before the traffic
	// manager is installed and after it is removed.
	Cluster func(install.Options) (Cluster, error)
	// Run runs a program on this terminal until it ends and returns its exit code.
	Run func(context.Context, Program) (int, error)
	// LookPath finds a program in $PATH.
	LookPath func(string) (string, error)
}

// Cluster is what commands do to a cluster without the daemon.
type Cluster interface {
	Server() string
	Install(context.Context, install.Settings) error
	Upgrade(context.Context, install.Settings) error
	Uninstall(context.Context, install.Settings) error
	RemoveEverything(context.Context, install.Settings) error
	WorkloadNames(ctx context.Context, namespace string) ([]string, error)
	NamespaceNames(context.Context) ([]string, error)
	WorkloadParts(ctx context.Context, namespace, workload string) (install.Parts, error)
	ServicePort(ctx context.Context, namespace, service, id string) (int32, error)
	HasNamespace(ctx context.Context, name string) error
	Logs(context.Context, install.LogOptions) error
}

// Brand returns the name in sentences.
func (e *Env) Brand() string {
	return strings.ToUpper(e.Name[:1]) + e.Name[1:]
}
