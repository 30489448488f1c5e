// Package daemon is the user daemon: the process on the laptop that holds the session with a cluster, so that
// intercepts live longer than the command that made them.
package daemon

import (
	"context"
	"errors"
)

// Options say where the daemon lives.
type Options struct {
	// Socket is the path of the socket to serve; see home.Socket. Its directory is made, 0700, if it does not exist.
	Socket string
	// CacheDir holds what outlives the daemon; see home.Cache.
	CacheDir string
	// LogFile is written to, and rotated; empty: stderr.
	LogFile string
	// LogLevel is debug, info, warn or error; empty: info.
	LogLevel string
}

// Run serves the socket until Quit is called, ctx ends, a SIGTERM or SIGINT comes, or the socket is removed. It returns nil at
// once when another daemon serves the socket. Only Quit ends the session: after everything else the next daemon resumes it.
func Run(ctx context.Context, o Options) error {
	return errors.New("not yet")
}
