// SPDX-License-Identifier: Apache-2.0

// Package socket is how the command line reaches the daemon, and what it knows of the daemon's
// files.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/home"
	"sidestep.dev/sidestep/internal/reason"
)

// ownPath is what to do about the socket of another user.
const ownPath = "set SIDESTEP_DAEMON_SOCKET to a path of your own"

// Ping is how often a daemon is asked whether it still lives during a call, and how long it has to
// answer.
const Ping = 10 * time.Second

// Hung is the error that the daemon which serves the socket at path does not answer.
func Hung(path string) error {
	end := "end it, and run the command again"
	if holder, err := os.ReadFile(home.Lock(path)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(holder))); err == nil {
			end = fmt.Sprintf("end it with `kill -9 %d`, and run the command again", pid)
		}
	}
	return reason.Advise(errors.New("the daemon does not answer"),
		"%s: the next one goes on with its session", end)
}

// Path is where this user's daemon serves.
func Path() (string, error) { return home.Socket(os.Getenv) }

// LogFile is where this user's daemon logs.
func LogFile() (string, error) {
	cache, err := home.Cache(os.Getenv)
	if err != nil {
		return "", err
	}
	return home.Log(cache), nil
}

// Saved says whether a session is on disk, which a new daemon would resume.
func Saved() bool {
	cache, err := home.Cache(os.Getenv)
	if err != nil {
		return false
	}
	_, err = os.Stat(home.Session(cache))
	return err == nil
}

// Clean removes everything that a daemon leaves on disk. A daemon that runs is not touched, and
// writes again.
func Clean() error {
	path, err := Path()
	if err != nil {
		return err
	}
	cache, err := home.Cache(os.Getenv)
	if err != nil {
		return err
	}
	log := home.Log(cache)
	logs, _ := filepath.Glob(log + "*")                     // with its predecessors
	sessions, _ := filepath.Glob(home.Session(cache) + "*") // and one that was put aside
	var errs []error
	for _, file := range slices.Concat(logs, sessions, []string{path, home.Lock(path)}) {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Directories go when they are empty: $SIDESTEP_DAEMON_SOCKET and $XDG_CACHE_HOME may hold what
	// is not ours.
	for _, dir := range []string{filepath.Dir(log), cache, filepath.Dir(path)} {
		if filepath.Base(dir) == "sidestep" || filepath.Base(dir) == "logs" {
			_ = os.Remove(dir)
		}
	}
	return errors.Join(errs...)
}

// Dial connects to this user's daemon, as DialPath does.
func Dial(ctx context.Context) (daemonpb.DaemonClient, io.Closer, error) {
	path, err := Path()
	if err != nil {
		return nil, nil, err
	}
	return DialPath(ctx, path)
}

// DialPath connects to the daemon that serves the socket at path, and returns once the socket has
// accepted. When no daemon runs the error is os.ErrNotExist or syscall.ECONNREFUSED. A socket that
// belongs to another user is refused.
func DialPath(ctx context.Context, path string) (daemonpb.DaemonClient, io.Closer, error) {
	if err := owned(path); err != nil {
		return nil, nil, err
	}
	first, err := dialOwn(ctx, path, os.Getuid())
	if errors.Is(err, syscall.EAGAIN) { // its backlog is full, as that of one that hangs will be
		return nil, nil, Hung(path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	firsts := make(chan net.Conn, 1)
	firsts <- first
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case conn := <-firsts:
			return conn, nil
		default:
			return dialOwn(ctx, path, os.Getuid())
		}
	}
	conn, err := grpc.NewClient("passthrough:///daemon",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0),
		// A daemon that hangs in the middle of a call is given up.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: Ping, Timeout: Ping}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6,
				MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		_ = first.Close()
		return nil, nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	conn.Connect()
	return daemonpb.NewDaemonClient(conn), conn, nil
}

// dialOwn connects to a socket that a process of the user serves. The owner of the path does not tell
// that: in a directory that others may write, the path can change after it was looked at.
func dialOwn(ctx context.Context, path string, me int) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if uid, ok := Peer(conn); ok && uid != me && me != 0 {
		_ = conn.Close()
		return nil, reason.Advise(fmt.Errorf("the daemon's socket %s is served by a process of user %d",
			path, uid), "%s", ownPath)
	}
	return conn, nil
}
