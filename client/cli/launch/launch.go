// SPDX-License-Identifier: Apache-2.0

// Package launch starts the user daemon in the background and waits until it listens.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sidestep.dev/sidestep/internal/reason"
)

const (
	// patience is how long the daemon has to open its socket. Nothing before that needs a network.
	patience = 10 * time.Second
	poll     = 20 * time.Millisecond
	// logLines is how many lines of the log go into the error if the daemon does not start.
	logLines = 12
)

// Daemon says how the daemon is started.
type Daemon struct {
	Executable string
	Args       []string
	// LogFile receives what the process writes to its standard output and error, such as the trace
	// of a crash.
	LogFile string
	// Listening reports whether the daemon's socket answers.
	Listening func(context.Context) bool
	// Patience overrides the default of ten seconds.
	Patience time.Duration
}

// Start starts the daemon in a session of its own, so that neither Ctrl-C nor the end of the
// terminal reaches it, and returns once it listens. If it does not, the error has the end of its
// log.
func (d Daemon) Start(ctx context.Context) error {
	if d.Patience == 0 {
		d.Patience = patience
	}
	log, err := d.openLog()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	defer log.Close()
	d.LogFile = log.Name()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}

	release, err := d.turn(ctx)
	if err != nil || release == nil {
		return err
	}
	defer release()
	// CommandContext would end the daemon with this command.
	cmd := exec.Command(d.Executable, d.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = string(filepath.Separator)
	cmd.SysProcAttr = detached()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	return d.wait(ctx, exited, start)
}

// turn waits until no other command is starting the daemon. It returns a function that lets the
// next one do it, or nil if the daemon listens by then: another process would only wait for it to
// end, and take its place.
func (d Daemon) turn(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	for {
		release, taken := takeTurn(d.LogFile)
		if d.Listening(ctx) {
			if taken {
				release()
			}
			return nil, nil
		}
		if taken {
			return release, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("start the daemon: another command is doing that, and its socket did not answer "+
				"within %s", d.Patience)
		case <-time.After(poll):
		}
	}
}

// openLog opens the log, or a temporary file if a read-only home has no place for it.
func (d Daemon) openLog() (*os.File, error) {
	err := os.MkdirAll(filepath.Dir(d.LogFile), 0o700)
	if err == nil {
		var log *os.File
		if log, err = os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			return log, nil
		}
	}
	log, tempErr := os.CreateTemp("", "sidestep-daemon-*.log")
	if tempErr != nil {
		return nil, errors.Join(err, tempErr)
	}
	return log, nil
}

func (d Daemon) wait(ctx context.Context, exited <-chan error, logStart int64) error {
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if d.Listening(ctx) {
			return nil
		}
		select {
		case err := <-exited:
			// A daemon that another command started at the same time is as good.
			if d.Listening(ctx) {
				return nil
			}
			how := "it ended at once"
			if err != nil {
				how = err.Error()
			}
			return d.failure(how, logStart)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return d.failure(fmt.Sprintf("its socket did not answer within %s", d.Patience), logStart)
		case <-tick.C:
		}
	}
}

func (d Daemon) failure(how string, logStart int64) error {
	advice := "its log is " + d.LogFile
	if end := tail(d.LogFile, logStart); end != "" {
		advice += " and ends with\n" + end
	}
	return reason.Advise(errors.New("start the daemon: "+how), "%s", advice)
}

// tail returns the last lines of what has been written to the file since the offset start.
func tail(path string, start int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err != nil || size < start {
		start = 0 // rotated
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return ""
	}
	content, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(content))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-logLines):]
	return "    " + strings.Join(lines, "\n    ")
}
