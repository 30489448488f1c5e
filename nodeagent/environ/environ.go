// SPDX-License-Identifier: Apache-2.0

// Package environ reads the environment of a container: what its first process was started with,
// whatever the pod's specification, the image, the container runtime and an entrypoint that ends in
// exec have made of it.
package environ

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxSize bounds an environment, in bytes. Linux takes up to six megabytes; nobody has a tenth of
// that.
const MaxSize = 4 << 20

// Why there is no environment.
var (
	ErrNotFound    = errors.New("no process of the container was found on this node")
	ErrOverwritten = errors.New(
		"the process has overwritten its environment, as nginx and others do to change their titles")
)

var validID = regexp.MustCompile(`^[0-9a-zA-Z]{8,128}$`)

// Reader reads environments in Proc, which is /proc or where the node's /proc is mounted. It must
// show all of the node's processes (hostPID).
type Reader struct{ Proc string }

// Read gives the variables of the container's first process, as NAME=VALUE in the process's order.
func (r Reader) Read(podUID, containerID string) ([][]byte, error) {
	if !validID.MatchString(containerID) {
		return nil, fmt.Errorf("%q is not the ID of a container", containerID)
	}
	processes, err := r.find(podUID, containerID)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		variables, err := r.of(p, podUID, containerID)
		if errors.Is(err, errEnded) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the environment of process %d: %w", p.pid, err)
		}
		return variables, nil
	}
	return nil, ErrNotFound
}

type process struct {
	pid     int
	started uint64 // clock ticks since boot
	inner   int    // its number in its own PID namespace
}

// find lists the container's processes, the first one first. Those that `kubectl exec` and probes
// start are younger. Clock ticks are coarse: of two processes of one tick the first one has the
// lower number where it lives.
func (r Reader) find(podUID, containerID string) ([]process, error) {
	entries, err := os.ReadDir(r.Proc)
	if err != nil {
		return nil, fmt.Errorf("list the node's processes: %w", err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(r.Proc, e.Name())
		cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !isOf(cgroups, podUID, containerID) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		started, err := startOf(stat)
		if err != nil {
			return nil, fmt.Errorf("read when process %d was started: %w", pid, err)
		}
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		found = append(found, process{pid, started, innermost(status, pid)})
	}
	slices.SortFunc(found, func(a, b process) int {
		return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.inner, b.inner),
			cmp.Compare(a.pid, b.pid))
	})
	return found, nil
}

var errEnded = errors.New("it has ended")

// of reads the environment of one process. The directory stays that of the process, and is empty
// when it has ended, whoever gets its number then.
func (r Reader) of(p process, podUID, containerID string) (variables [][]byte, err error) {
	dir, err := os.OpenRoot(filepath.Join(r.Proc, strconv.Itoa(p.pid)))
	if err != nil {
		return nil, errEnded
	}
	defer dir.Close()
	cgroups, err := dir.ReadFile("cgroup")
	if err != nil || !isOf(cgroups, podUID, containerID) {
		return nil, errEnded
	}
	stat, err := dir.ReadFile("stat")
	if err != nil || isZombie(stat) {
		return nil, errEnded
	}
	text, err := memory(p.pid, stat)
	if stat, gone := dir.ReadFile("stat"); gone != nil || isZombie(stat) {
		return nil, errEnded // and what was read may be of another process with the same number
	}
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// memory reads the part of a process's memory that the kernel would show as its environment. The
// file /proc/PID/environ has that, too, but is its owner's alone, whom root without
// CAP_DAC_OVERRIDE is not.
func memory(pid int, stat []byte) ([]byte, error) {
	const start, end = 50 - 3, 51 - 3
	all := fields(stat)
	if len(all) <= end {
		return nil, fmt.Errorf("%d fields after the command's name", len(all))
	}
	from, err := strconv.ParseUint(string(all[start]), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("where the environment begins: %w", err)
	}
	to, err := strconv.ParseUint(string(all[end]), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("where the environment ends: %w", err)
	}
	if from == 0 || to < from {
		return nil, errors.New("the kernel does not tell where it is (the node agent needs CAP_SYS_PTRACE)")
	}
	text := make([]byte, min(to-from, MaxSize+1))
	for have := 0; have < len(text); {
		local := unix.Iovec{Base: &text[have]}
		local.SetLen(len(text) - have)
		remote := unix.RemoteIovec{Base: uintptr(from) + uintptr(have), Len: len(text) - have}
		n, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
		if err != nil {
			return nil, fmt.Errorf("%w (the node agent needs CAP_SYS_PTRACE, and kernel.yama.ptrace_scope below 3)", os.NewSyscallError("process_vm_readv", err))
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		have += n
	}
	return text, nil
}

// parse splits what the kernel shows (proc_pid_environ(5)). The kernel shows the memory in which
// the environment was at the start; programs that write a title there leave fragments without '=',
// or nothing but zeroes. What is after the first fragment may be as wrong as that.
func parse(text []byte) ([][]byte, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxSize)
	}
	var variables [][]byte
	empty := 0
	for entry := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		switch at := bytes.IndexByte(entry, '='); {
		case len(entry) == 0:
			empty++
		case at < 0:
			return nil, ErrOverwritten
		case at == 0: // it has no name, and nobody can read it
		default:
			variables = append(variables, entry)
		}
	}
	if len(text) > 0 && len(variables) == 0 || len(variables) > 0 && empty > 0 {
		return nil, ErrOverwritten
	}
	return variables, nil
}

// isOf says whether a process with these control groups (cgroups(7), /proc/PID/cgroup) is the
// container's. The groups are named /kubepods/burstable/pod<uid>/<id> (cgroupfs driver),
// .../kubepods-burstable-pod<uid with underscores>.slice/<runtime>-<id>.scope (systemd driver), or
// kubepods-burstable-pod<uid>.slice:cri-containerd:<id>; there may be more below. CRI-O's conmon,
// in crio-conmon-<id>.scope, is not in the container.
func isOf(cgroups []byte, podUID, containerID string) bool {
	for line := range strings.Lines(string(cgroups)) {
		_, groups, ok := strings.Cut(line, ":")
		if _, path, more := strings.Cut(groups, ":"); ok && more &&
			holds(strings.TrimSpace(path), podUID, containerID) {
			return true
		}
	}
	return false
}

func holds(groups, podUID, containerID string) bool {
	pod := false
	for groups != "" {
		var component string
		component, groups, _ = strings.Cut(strings.TrimPrefix(groups, "/"), "/")
		if before, id, ok := cutLast(component, ":"); ok && id == containerID {
			return pod || isPod(before, podUID)
		}
		if pod && named(component, containerID) {
			return true
		}
		pod = pod || isPod(component, podUID)
	}
	return false
}

func isPod(component, podUID string) bool {
	component, _, _ = strings.Cut(component, ":")
	component = strings.ReplaceAll(strings.ToLower(strings.TrimSuffix(component, path.Ext(component))),
		"_", "-")
	uid := "pod" + strings.ReplaceAll(strings.ToLower(podUID), "_", "-")
	return component == uid || strings.HasSuffix(component, "-"+uid)
}

func named(component, containerID string) bool {
	component = strings.TrimSuffix(component, ".scope")
	return component == containerID || strings.HasSuffix(component, "-"+containerID) &&
		!strings.HasPrefix(component, "crio-conmon-")
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// fields are those of proc_pid_stat(5) after the command's name, which is in parentheses and may
// hold anything. The first is the state.
func fields(stat []byte) [][]byte { return bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) }

func startOf(stat []byte) (uint64, error) {
	const started = 22 - 3
	all := fields(stat)
	if len(all) <= started {
		return 0, fmt.Errorf("%d fields after the command's name", len(all))
	}
	return strconv.ParseUint(string(all[started]), 10, 64)
}

func isZombie(stat []byte) bool {
	all := fields(stat)
	return len(all) == 0 || string(all[0]) == "Z" || string(all[0]) == "X"
}

// innermost is a process's number in its own PID namespace: the last of NSpid in
// proc_pid_status(5).
func innermost(status []byte, pid int) int {
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if all := strings.Fields(numbers); len(all) > 0 {
				if inner, err := strconv.Atoi(all[len(all)-1]); err == nil {
					return inner
				}
			}
		}
	}
	return pid
}
