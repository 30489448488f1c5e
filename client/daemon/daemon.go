// SPDX-License-Identifier: Apache-2.0

// Package daemon is the user daemon: the process on the laptop that has the session with a cluster,
// so that intercepts outlive the command that made them.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/home"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/client/session"
	"sidestep.dev/sidestep/internal/version"
)

const (
	// stopTimeout bounds how long calls may take when the daemon ends.
	stopTimeout = 2 * time.Second
	// greetTimeout bounds how long a connection to the socket may stay silent. A daemon that ends
	// waits for it.
	greetTimeout = 2 * time.Second
	// socketCheck is how often the daemon checks that its socket is still there.
	socketCheck = time.Second
)

// Options say where the daemon's files are.
type Options struct {
	// Socket is the path of the socket to serve; see home.Socket. Its directory is created with
	// mode 0700 if it does not exist.
	Socket string
	// CacheDir has the files that outlive the daemon; see home.Cache.
	CacheDir string
	// LogFile is written to and rotated. Empty means stderr.
	LogFile string
	// LogLevel is debug, info, warn or error. Empty means info.
	LogLevel string

	// Timing of the link to the manager, how its pods are reached and the wall clock. The zero
	// values are right except in tests.
	Timing  link.Timing
	Forward link.Forward
	Wall    func() time.Time
}

// Run serves the socket until Quit is called, ctx ends, a SIGTERM, SIGINT or SIGHUP arrives, or the
// socket is removed. It returns nil at once if another daemon serves the socket. Only Quit ends the
// session: in all other cases the next daemon resumes it.
func Run(ctx context.Context, o Options) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	socket, err := listen(ctx, o.Socket)
	if errors.Is(err, errServed) {
		return nil
	}
	if err != nil {
		return err
	}
	defer socket.release()
	log, level, closeLog, err := newLog(o)
	if err != nil {
		return err
	}
	defer closeLog()
	log.Info("daemon started", "version", version.Version, "pid", os.Getpid(), "socket", o.Socket)

	s := newService(session.Options{Store: session.Store{Path: home.Session(o.CacheDir)}, Log: log,
		Timing: o.Timing, Forward: o.Forward, Wall: o.Wall}, o, level)
	s.resume()
	server := grpc.NewServer(
		grpc.ConnectionTimeout(greetTimeout),
		grpc.MaxRecvMsgSize(4<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second,
			PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
	)
	daemonpb.RegisterDaemonServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	why, err := wait(ctx, socket, s.quit, served)
	log.Info("daemon ends", "why", why)
	close(s.stopping)
	shutdown(server)
	s.close()
	return err
}

// wait returns when the daemon has to end, and why.
func wait(ctx context.Context, socket *endpoint, quit <-chan struct{}, served <-chan error) (string, error) {
	ticker := time.NewTicker(socketCheck)
	defer ticker.Stop()
	for {
		select {
		case <-quit:
			return "quit", nil
		case <-ctx.Done():
			return "signal", nil
		case err := <-served:
			return "cannot serve", fmt.Errorf("serve the daemon's socket: %w", err)
		case <-ticker.C:
			if socket.removed() {
				return "socket removed", nil
			}
		}
	}
}

// shutdown waits a moment for calls to end.
func shutdown(server *grpc.Server) {
	force := time.AfterFunc(stopTimeout, server.Stop)
	defer force.Stop()
	server.GracefulStop()
}

// newLog logs to the file or, if it cannot be opened (the home is read-only), to stderr.
func newLog(o Options) (*slog.Logger, *logLevel, func(), error) {
	var first slog.Level
	if o.LogLevel != "" {
		if err := first.UnmarshalText([]byte(o.LogLevel)); err != nil {
			return nil, nil, nil, fmt.Errorf("log level: %w", err)
		}
	}
	level := newLogLevel(first)
	var out io.Writer = os.Stderr
	closeLog := func() {}
	var fileErr error
	if o.LogFile != "" {
		var file *logFile
		if file, fileErr = openLog(o.LogFile); fileErr == nil {
			out, closeLog = file, func() { _ = file.Close() }
		}
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	if fileErr != nil {
		log.Warn("logging to stderr", "error", fileErr)
	}
	adoptLibraries(log)
	return log, level, closeLog, nil
}
