// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: it turns words into calls to the user daemon, and the daemon's
// answers into what people and programs read.
package cli

import (
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/launch"
	"sidestep.dev/sidestep/client/daemon"
	"sidestep.dev/sidestep/client/daemon/socket"
	"sidestep.dev/sidestep/client/home"
	"sidestep.dev/sidestep/deploy"
	"sidestep.dev/sidestep/internal/version"
)

// foregroundCommand is what the daemon's own process runs.
const foregroundCommand = "daemon-foreground"

// env is the world as the commands see it, so that a test can make another.
type env struct {
	name    string // as the program was called: sidestep or telepresence
	version string

	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	// logFile is where the daemon of this user logs.
	logFile func() string
	// isTerminal tells whether a stream, one of the three above, is a terminal, and how many
	// columns it has.
	isTerminal func(stream any) (columns int, ok bool)
	workingDir func() (string, error)

	// patience is how long the daemon has to answer at all, and hung is the error that it did not.
	patience time.Duration
	hung     func() error
	// dial fails with an error that notRunning knows when there is no daemon.
	dial func(context.Context) (daemonpb.DaemonClient, io.Closer, error)
	// launch starts a daemon and returns once it listens.
	launch func(context.Context) error
	// saved tells whether a daemon that died left a session for the next one to resume.
	saved func() bool
	// clean removes what daemons leave on the disk. No daemon may be running.
	clean func() error
	// foreground is the daemon itself.
	foreground func(context.Context) error

	chart fs.FS // the chart's files, Chart.yaml at its root
	// cluster reaches the cluster past the daemon, for what is done before there is a traffic
	// manager and after there was one.
	cluster func(install.Options) (cluster, error)
	// run runs a program on this terminal until it ends and returns its exit code.
	run func(context.Context, program) (int, error)
	// lookPath finds a program on the PATH.
	lookPath func(string) (string, error)
}

// cluster is what the commands do to a cluster without the daemon.
type cluster interface {
	Server() string
	Install(context.Context, install.Settings) error
	Upgrade(context.Context, install.Settings) error
	Uninstall(context.Context, install.Settings) error
	RemoveEverything(context.Context, install.Settings) error
	WorkloadNames(ctx context.Context, namespace string) ([]string, error)
	NamespaceNames(context.Context) ([]string, error)
	WorkloadParts(ctx context.Context, namespace, workload string) (install.Parts, error)
	Logs(context.Context, install.LogOptions) error
}

// Main runs the command line of this process and returns its exit code.
func Main() int {
	return processEnv().main(untilSignal(context.Background()), os.Args[1:])
}

// untilSignal returns a context that the first SIGINT, SIGTERM or SIGHUP ends. A second one kills
// the process as it would have without this.
func untilSignal(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		sig, _ := (<-signals).(syscall.Signal)
		cancel(signalError(sig))
		signal.Stop(signals)
	}()
	return ctx
}

func processEnv() *env {
	e := &env{
		name: programName(os.Args), version: version.Version,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, now: time.Now, logFile: daemonLog, isTerminal: isTerminal, workingDir: os.Getwd,
		dial: socket.Dial, saved: socket.Saved, clean: socket.Clean, foreground: runDaemon,
		run: runProgram, lookPath: exec.LookPath, patience: socket.Ping, hung: hung,
	}
	e.launch = e.launchProcess
	e.chart, _ = fs.Sub(deploy.Chart, "chart")
	e.cluster = func(o install.Options) (cluster, error) { return install.Reach(o) }
	return e
}

// programName is telepresence when the program was called so, and sidestep otherwise.
func programName(args []string) string {
	if len(args) > 0 && strings.TrimSuffix(filepath.Base(args[0]), ".exe") == "telepresence" {
		return "telepresence"
	}
	return "sidestep"
}

// brand is the name in sentences.
func (e *env) brand() string {
	return strings.ToUpper(e.name[:1]) + e.name[1:]
}

func isTerminal(stream any) (int, bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		columns = 80
	}
	return columns, true
}

func daemonLog() string {
	path, err := socket.LogFile()
	if err != nil {
		return "daemon.log"
	}
	return path
}

func hung() error {
	path, err := socket.Path()
	if err != nil {
		return err
	}
	return socket.Hung(path)
}

func (e *env) launchProcess(ctx context.Context) error {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := socket.LogFile()
	if err != nil {
		return err
	}
	d := launch.Daemon{
		Executable: executable, Args: []string{foregroundCommand}, LogFile: logFile,
		Listening: func(ctx context.Context) bool {
			_, conn, err := e.dial(ctx)
			if err != nil {
				return false
			}
			_ = conn.Close()
			return true
		},
	}
	return d.Start(ctx)
}

func runDaemon(ctx context.Context) error {
	path, err := socket.Path()
	if err != nil {
		return err
	}
	cache, err := home.Cache(os.Getenv)
	if err != nil {
		return err
	}
	return daemon.Run(ctx, daemon.Options{Socket: path, CacheDir: cache, LogFile: home.Log(cache),
		LogLevel: os.Getenv("SIDESTEP_LOG_LEVEL")})
}
