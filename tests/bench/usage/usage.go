// SPDX-License-Identifier: Apache-2.0

// Package usage tells what a process takes of its machine.
package usage

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is of one process, in bytes.
type Memory struct {
	RSS       int64 // all that is in memory, pages of its program included
	PSS       int64 // the same, but pages that several processes share only in part
	Anonymous int64 // what nothing on disk can bring back
}

// MemoryOf reads the memory of a process (proc_pid_smaps(5), Linux 4.14).
func MemoryOf(pid int) (m Memory, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	defer f.Close()
	fields := map[string]*int64{"Rss:": &m.RSS, "Pss:": &m.PSS, "Anonymous:": &m.Anonymous}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), " ")
		if to := fields[name]; to != nil {
			if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
				return m, fmt.Errorf("memory of process %d: %q: %w", pid, lines.Text(), err)
			}
			*to <<= 10
		}
	}
	return m, nil
}

// CPUOf returns the CPU time of a process, to the nanosecond (clock_getcpuclockid(3)), without its
// children.
func CPUOf(pid int) (time.Duration, error) {
	// of a process's clocks, the one that counts what the scheduler has given it
	// (linux/posix-timers.h)
	const scheduled = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// Rest watches processes for that long, and returns the fraction of a CPU that each of them used.
func Rest(ctx context.Context, long time.Duration, pids ...int) ([]float64, error) {
	before := make([]time.Duration, len(pids))
	used := make([]float64, len(pids))
	started := time.Now()
	for i, pid := range pids {
		var err error
		if before[i], err = CPUOf(pid); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(long):
	}
	for i, pid := range pids {
		after, err := CPUOf(pid)
		if err != nil {
			return nil, err
		}
		used[i] = float64(after-before[i]) / float64(time.Since(started))
	}
	return used, nil
}
