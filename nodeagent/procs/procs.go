// SPDX-License-Identifier: Apache-2.0

// Package procs reads in /proc which processes there are and whose they are: which pod's, which
// container's, in which control groups.
//
// A PID is no identity: a new process may have that of an old one. So whoever keeps a PID asks again
// whose it is before acting on it, or holds the process's directory open (see FS).
package procs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// FS is /proc, or the directory of one process in it. The process that reads must see all of the
// node's processes (hostPID).
type FS struct{ fs.FS }

// At returns the /proc at a path.
func At(dir string) FS { return FS{os.DirFS(dir)} }

// PIDs lists the processes.
func (f FS) PIDs() ([]string, error) {
	entries, err := fs.ReadDir(f, ".")
	if err != nil {
		return nil, fmt.Errorf("list the node's processes: %w", err)
	}
	var pids []string
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			pids = append(pids, e.Name())
		}
	}
	return pids, nil
}

// Cgroups reads the control groups of a process. pid is "." if FS is the process's directory.
func (f FS) Cgroups(pid string) (Cgroups, error) {
	text, err := fs.ReadFile(f, path.Join(pid, "cgroup"))
	if err != nil {
		return "", fmt.Errorf("read the control groups of process %s: %w", pid, err)
	}
	return Cgroups(text), nil
}

// Stat is what proc_pid_stat(5) tells of a process.
type Stat struct {
	Started          uint64 // clock ticks since boot
	State            byte
	EnvStart, EnvEnd uint64 // where its environment is in its memory, 0 for those who may not know
}

// Ended reports whether the process is a zombie.
func (s Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' }

// Stat reads the stat file of a process. pid is "." if FS is the process's directory.
func (f FS) Stat(pid string) (Stat, error) {
	text, err := fs.ReadFile(f, path.Join(pid, "stat"))
	if err != nil {
		return Stat{}, err
	}
	s, err := parseStat(text)
	if err != nil {
		return Stat{}, fmt.Errorf("parse /proc/%s/stat: %w", pid, err)
	}
	return s, nil
}

// parseStat parses the fields after the command's name, which is in parentheses and may hold
// anything.
func parseStat(text []byte) (s Stat, err error) {
	const firstField = 3
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	number := func(field int) (n uint64) {
		if at := field - firstField; at < len(fields) {
			var wrong error
			if n, wrong = strconv.ParseUint(string(fields[at]), 10, 64); wrong != nil {
				err = errors.Join(err, fmt.Errorf("field %d: %w", field, wrong))
			}
		}
		return n
	}
	if len(fields) <= 22-firstField {
		return Stat{}, fmt.Errorf("%d fields after the command's name", len(fields))
	}
	s = Stat{State: fields[0][0], Started: number(22), EnvStart: number(50), EnvEnd: number(51)}
	return s, err
}

// InnerPID returns the PID of a process in its own PID namespace: the last NSpid of
// proc_pid_status(5). Without that it is the PID itself.
func (f FS) InnerPID(pid string) int {
	outer, _ := strconv.Atoi(pid)
	text, _ := fs.ReadFile(f, path.Join(pid, "status"))
	for line := range strings.Lines(string(text)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if all := strings.Fields(numbers); len(all) > 0 {
				if inner, err := strconv.Atoi(all[len(all)-1]); err == nil {
					return inner
				}
			}
		}
	}
	return outer
}
