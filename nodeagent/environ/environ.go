// SPDX-License-Identifier: Apache-2.0

// Package environ reads the environment of a container: the one with which its first process was
// started, after the pod's specification, the image, the container runtime and an entrypoint that
// ends in exec have shaped it.
package environ

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/procs"
)

// MaxSize bounds an environment, in bytes. Linux allows up to six megabytes, and real ones have
// less than a tenth of that.
const MaxSize = 4 << 20

// Why there is no environment.
var (
	ErrNotFound    = errors.New("no process of the container was found on this node")
	ErrOverwritten = errors.New(
		"the process has overwritten its environment, as nginx and others do to change their titles")
)

var validID = regexp.MustCompile(`^[0-9a-zA-Z]{8,128}$`)

// Reader reads environments in Proc, which is /proc or wherever the node's /proc is mounted. It
// must show all processes of the node (hostPID).
type Reader struct{ Proc string }

// Read returns the variables of the container's first process, each as NAME=VALUE, in the process's
// order.
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
	inner   int    // its PID in its own PID namespace
}

// find lists the container's processes, the first one first. Processes that `kubectl exec` and
// probes start are younger. Clock ticks are coarse: of two processes that started in the same tick,
// the first one has the lower PID in its own namespace.
func (r Reader) find(podUID, containerID string) ([]process, error) {
	proc := procs.At(r.Proc)
	pids, err := proc.PIDs()
	if err != nil {
		return nil, err
	}
	var found []process
	for _, pid := range pids {
		groups, err := proc.Cgroups(pid)
		if err != nil || !groups.InContainer(podUID, containerID) {
			continue
		}
		stat, err := proc.Stat(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		} else if err != nil {
			return nil, err
		}
		number, err := strconv.Atoi(pid)
		if err != nil {
			return nil, err
		}
		found = append(found, process{number, stat.Started, proc.InnerPID(pid)})
	}
	slices.SortFunc(found, func(a, b process) int {
		return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.inner, b.inner),
			cmp.Compare(a.pid, b.pid))
	})
	return found, nil
}

var errEnded = errors.New("it has ended")

// of reads the environment of one process. An open /proc directory stays that of its process. It is
// empty once the process has ended, even if another process gets the PID.
func (r Reader) of(p process, podUID, containerID string) (variables [][]byte, err error) {
	dir, err := os.OpenRoot(filepath.Join(r.Proc, strconv.Itoa(p.pid)))
	if err != nil {
		return nil, errEnded
	}
	defer dir.Close()
	proc := procs.FS{FS: dir.FS()}
	groups, err := proc.Cgroups(".")
	if err != nil || !groups.InContainer(podUID, containerID) {
		return nil, errEnded
	}
	stat, err := proc.Stat(".")
	if err != nil || stat.Ended() {
		return nil, errEnded
	}
	text, err := memory(p.pid, stat.EnvStart, stat.EnvEnd)
	if stat, gone := proc.Stat("."); gone != nil || stat.Ended() {
		return nil, errEnded // what was read may belong to another process with the same PID
	}
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// memory reads the part of a process's memory that the kernel would show as its environment. Only
// the owner may read /proc/PID/environ, and root without CAP_DAC_OVERRIDE is not the owner.
func memory(pid int, from, to uint64) ([]byte, error) {
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

// parse splits an environment as the kernel shows it (proc_pid_environ(5)). The kernel shows the
// memory that held the environment at the start. Programs that write their title there leave
// fragments without '=', or only zeroes. What follows the first fragment may be damaged too, so
// parse then returns ErrOverwritten.
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
