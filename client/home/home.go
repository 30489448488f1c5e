// SPDX-License-Identifier: Apache-2.0

// Package home names the client's files: the daemon's socket, the record of its session and its
// log.
package home

import (
	"fmt"
	"os"
	"path/filepath"
)

// Socket returns the path of the daemon's socket: $SIDESTEP_DAEMON_SOCKET, else
// sidestep/daemon.sock in $XDG_RUNTIME_DIR, else daemon.sock in the cache directory.
func Socket(getenv func(string) string) (string, error) {
	if path := getenv("SIDESTEP_DAEMON_SOCKET"); path != "" {
		return filepath.Abs(path)
	}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sidestep", "daemon.sock"), nil
	}
	dir, err := Cache(getenv)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "daemon.sock"), nil
}

// Cache returns the directory of what outlives the daemon: $XDG_CACHE_HOME/sidestep, else
// ~/.cache/sidestep. It need not exist.
func Cache(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sidestep"), nil
	}
	home := getenv("HOME")
	if home == "" {
		var err error
		if home, err = os.UserHomeDir(); err != nil {
			return "", fmt.Errorf("find the cache directory: %w: set HOME or XDG_CACHE_HOME", err)
		}
	}
	return filepath.Join(home, ".cache", "sidestep"), nil
}

// Session returns the path of the record of the daemon's session, in the cache directory.
func Session(cache string) string { return filepath.Join(cache, "session.json") }

// Log returns the path of the daemon's log file, in the cache directory.
func Log(cache string) string { return filepath.Join(cache, "logs", "daemon.log") }

// Lock returns the path of the file beside the socket that the daemon which serves the socket holds
// locked.
func Lock(socket string) string { return socket + ".lock" }
