// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: its root, the help, and the process in which it runs. The
// commands are in packages of their own, one for each noun.
package cli

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/launch"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/client/daemon"
	"sidestep.dev/sidestep/client/daemon/socket"
	"sidestep.dev/sidestep/client/home"
	"sidestep.dev/sidestep/deploy"
	"sidestep.dev/sidestep/internal/version"
)

// Main runs the command line of this process and returns its exit code.
func Main() int {
	return Run(untilSignal(context.Background()), processEnv(), os.Args[1:])
}

// untilSignal returns a context that the first SIGINT, SIGTERM or SIGHUP ends. A second one kills
// the process as it would have without this.
func untilSignal(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		sig, _ := (<-signals).(syscall.Signal)
		cancel(output.SignalError(sig))
		signal.Stop(signals)
	}()
	return ctx
}

func processEnv() *env.Env {
	e := &env.Env{
		Name: programName(os.Args), Version: version.Version,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Now: time.Now, LogFile: daemonLog, IsTerminal: env.IsTerminal, WorkingDir: os.Getwd,
		Dial: socket.Dial, Saved: socket.Saved, Clean: socket.Clean, Foreground: runDaemon,
		Run: env.RunProgram, LookPath: exec.LookPath, Patience: socket.Ping, Hung: hung,
	}
	e.Launch = func(ctx context.Context) error { return launchProcess(ctx, e) }
	e.Chart, _ = fs.Sub(deploy.Chart, "chart")
	e.Cluster = func(o install.Options) (env.Cluster, error) { return install.Reach(o) }
	return e
}

// programName returns telepresence if the program was called so, and sidestep otherwise.
func programName(args []string) string {
	if len(args) > 0 && strings.TrimSuffix(filepath.Base(args[0]), ".exe") == "telepresence" {
		return "telepresence"
	}
	return "sidestep"
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

func launchProcess(ctx context.Context, e *env.Env) error {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := socket.LogFile()
	if err != nil {
		return err
	}
	d := launch.Daemon{
		Executable: executable, Args: []string{env.ForegroundCommand}, LogFile: logFile,
		Listening: func(ctx context.Context) bool {
			_, conn, err := e.Dial(ctx)
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
