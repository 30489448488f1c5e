// SPDX-License-Identifier: Apache-2.0

// Package process remembers processes across runs of the tool, and never mistakes another process
// for one of them: a process is its id together with the time it started.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies one process. The zero value identifies none.
type Process struct {
	PID int `json:"pid"`
	// Start is in clock ticks since the machine's boot.
	Start uint64 `json:"start"`
	// Boot is the id of the boot that the ticks count from.
	Boot string `json:"boot"`
}

// Identify reads the identity of a process that runs now.
func Identify(pid int) (Process, error) {
	now, err := look(pid)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: now.start, Boot: bootID()}, nil
}

// Alive reports whether that very process still runs. A zombie does not.
func (p Process) Alive() bool {
	if p.PID <= 0 || p.Boot != bootID() {
		return false
	}
	now, err := look(p.PID)
	return err == nil && now.start == p.Start && now.state != 'Z' && now.state != 'X'
}

// Ending reports whether the process is alive but ending. The first process of a namespace stays so
// until all others in it are gone, and can no longer be entered.
func (p Process) Ending() bool {
	const exiting = 0x4 // PF_EXITING of the kernel's task flags
	now, err := look(p.PID)
	return p.Alive() && err == nil && now.flags&exiting != 0
}

// Signal sends a signal to the process if it still runs.
func (p Process) Signal(signal unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // the descriptor now refers to whichever process has the ID, so this cannot change any more
		return nil
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Kill ends the process and waits until it is gone.
func (p Process) Kill(ctx context.Context) error {
	for p.Alive() {
		if err := p.Signal(unix.SIGKILL); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// Save writes the record to a file.
func Save(path string, p Process) error {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("record process %d: %w", p.PID, err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("record process %d: %w", p.PID, err)
	}
	return os.Rename(temporary, path)
}

// Load reads a record. A file that does not exist, or holds nonsense, is the record of no process.
func Load(path string) (Process, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, nil
	}
	if err != nil {
		return Process{}, fmt.Errorf("read process record: %w", err)
	}
	var p Process
	if json.Unmarshal(text, &p) != nil {
		return Process{}, nil
	}
	return p, nil
}

// InNetns returns the processes whose network namespace is one of those inodes.
func InNetns(inodes map[uint64]bool) []Process {
	var found []Process
	entries, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, entry := range entries {
		var stat unix.Stat_t
		if unix.Stat(entry, &stat) != nil || !inodes[stat.Ino] {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(entry))))
		if err != nil {
			continue
		}
		if p, err := Identify(pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// snapshot is the kernel's information about a process.
type snapshot struct {
	start uint64
	state byte
	flags uint64
}

// look reads /proc/PID/stat. The command's name in it may contain anything, and ends at the last
// parenthesis.
func look(pid int) (snapshot, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return snapshot{}, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const state, flags, start = 0, 6, 19 // proc(5) counts them as 3, 9 and 22
	if len(fields) <= start {
		return snapshot{}, fmt.Errorf("unexpected content of /proc/%d/stat", pid)
	}
	now := snapshot{state: fields[state][0]}
	if now.start, err = strconv.ParseUint(string(fields[start]), 10, 64); err != nil {
		return snapshot{}, err
	}
	now.flags, err = strconv.ParseUint(string(fields[flags]), 10, 64)
	return now, err
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(id))
}
