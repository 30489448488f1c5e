// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/cluster/internal/debian"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/process"
)

// daemon is a program that runs on a machine as long as the cluster is up.
type daemon struct {
	name string
	log  string
	// started is when this run of the tool started it, or zero if it was running.
	started time.Time
	// exited is closed when a daemon that this run of the tool has started ends.
	exited chan struct{}
}

// ensure starts a daemon unless it runs.
func (c *Cluster) ensure(m machine.Machine, args []string) (*daemon, error) {
	name := args[0]
	d := &daemon{name: m.Spec.Name + "'s " + name, log: c.Log(m.Spec.Name, name), exited: make(chan struct{})}
	record := c.record(m.Spec.Name, name)
	known, err := process.Load(record)
	if err != nil {
		return nil, err
	}
	if known.Alive() {
		return d, nil
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", d.name, err)
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s: %s\n", time.Now().Format(time.RFC3339), strings.Join(args, " "))
	command, err := m.Run(machine.Command{
		Args: args, Path: c.ProgramDirs(), Env: daemonEnv(), Dir: "/", Stdout: log, Stderr: log, Detach: true,
	})
	if err != nil {
		return nil, err
	}
	d.started = time.Now()
	go func() {
		command.Wait()
		close(d.exited)
	}()
	started, err := process.Identify(command.Process.Pid)
	if err != nil {
		return nil, d.failure(err)
	}
	return d, process.Save(record, started)
}

// daemonEnv keeps what the user has set for other purposes away from the daemons.
func daemonEnv() []string {
	return []string{"PATH=" + debian.SearchPath(), "HOME=/root"}
}

// failure adds the end of a daemon's log to an error.
func (d *daemon) failure(err error) error {
	return fmt.Errorf("%w\n  the end of %s:\n%s", err, d.log, indent(tail(d.log, 15)))
}

const pollInterval = 50 * time.Millisecond

// await waits until a condition holds. It gives up when one of the daemons that it depends on ends.
func await(ctx context.Context, what string, limit time.Duration, daemons []*daemon,
	holds func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		for _, d := range daemons {
			select {
			case <-d.exited:
				return d.failure(fmt.Errorf("wait for %s: %s has ended", what, d.name))
			default:
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			err := fmt.Errorf("wait for %s: not within %s: %w", what, limit, last)
			for _, d := range daemons {
				err = d.failure(err)
			}
			return err
		case <-time.After(pollInterval):
		}
	}
}

// tail returns the last lines of a file, of which lines that look like failures matter most.
func tail(path string, count int) string {
	const most = 64 << 10
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > most {
		if _, err := file.Seek(-most, 2); err != nil {
			return err.Error()
		}
	}
	buffer := make([]byte, most)
	n, _ := file.Read(buffer)
	lines := strings.Split(strings.TrimSpace(string(buffer[:n])), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

func indent(text string) string { return "    " + strings.ReplaceAll(text, "\n", "\n    ") }
