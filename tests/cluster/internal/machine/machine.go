// SPDX-License-Identifier: Apache-2.0

// Package machine makes machines out of Linux namespaces.
//
// A machine is a process tree with its own network, mounts, process ids, host name and, if it has
// one, cgroup root. Its first process only waits for orphans: when it is killed the kernel ends
// everything else on the machine, and with the last process go the mounts. So nothing needs to be
// found and stopped one by one.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/process"
)

// Spec says how to make a machine.
type Spec struct {
	// Name is also the host name.
	Name string `json:"name"`
	// Netns is the path of an existing network namespace.
	Netns string `json:"netns"`
	// Var is the directory on this computer that is the machine's /var.
	Var string `json:"var"`
	// Programs is the directory on this computer that the machine sees as ProgramsDir.
	Programs string `json:"programs"`
	// Cgroup names the cgroup that holds the machine in every hierarchy and that it sees as the
	// root.
	Cgroup string `json:"cgroup"`
}

// ProgramsDir is where a machine has Spec.Programs.
const ProgramsDir = "/run/cluster/programs"

// Machine is one that has been started.
type Machine struct {
	Spec Spec
	// Init is the machine's first process.
	Init process.Process
}

// Start makes a machine.
func Start(spec Spec) (Machine, error) {
	fail := func(err error) (Machine, error) {
		return Machine{}, fmt.Errorf("start machine %s: %w", spec.Name, err)
	}
	order, err := json.Marshal(spec)
	if err != nil {
		return fail(err)
	}
	answer, report, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer answer.Close()
	command := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{initName, string(order)},
		Dir:        "/",
		ExtraFiles: []*os.File{report},
		SysProcAttr: &unix.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		},
	}
	err = inNamespaces([]namespace{{spec.Netns, unix.CLONE_NEWNET}}, command.Start)
	report.Close()
	if err != nil {
		return fail(err)
	}
	init, identifyErr := process.Identify(command.Process.Pid)
	go command.Wait() // or a machine that is killed while this program runs stays a zombie
	complaint, err := io.ReadAll(answer)
	if err := errors.Join(err, identifyErr); err != nil {
		return fail(err)
	}
	if text := string(complaint); text != ready {
		return fail(errors.New(strings.TrimSpace(text)))
	}
	return Machine{Spec: spec, Init: init}, nil
}

// Command is a program to run on a machine.
type Command struct {
	// Args has the program, looked up in the machine's PATH, and its arguments.
	Args []string
	// Env is the environment. Nil means that of this process. PATH is extended by Path.
	Env []string
	// Path has further directories to look for programs in, as the machine sees them.
	Path []string
	// Dir is the working directory, if the machine has it.
	Dir                   string
	Stdin, Stdout, Stderr *os.File
	// Detach gives the program a session of its own, so that no terminal's signals reach it.
	Detach bool
}

// Run starts a program on the machine. The caller waits for it.
func (m Machine) Run(c Command) (*exec.Cmd, error) {
	if !m.Init.Alive() {
		return nil, fmt.Errorf("machine %s is not running", m.Spec.Name)
	}
	base := fmt.Sprintf("/proc/%d/ns/", m.Init.PID)
	var cgroups []*os.File
	if m.Spec.Cgroup != "" {
		file, err := os.Open(base + "cgroup")
		if err != nil {
			return nil, fmt.Errorf("enter machine %s: %w", m.Spec.Name, err)
		}
		defer file.Close()
		cgroups = append(cgroups, file)
	}
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	order, err := json.Marshal(joinOrder{Args: c.Args, Dir: c.Dir, Cgroup: m.Spec.Cgroup != ""})
	if err != nil {
		return nil, fmt.Errorf("enter machine %s: %w", m.Spec.Name, err)
	}
	command := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{joinName, string(order)},
		Env:         extendPath(env, c.Path),
		ExtraFiles:  cgroups,
		SysProcAttr: &unix.SysProcAttr{Setsid: c.Detach},
	}
	// An interface that holds a nil *os.File is not nil.
	if c.Stdin != nil {
		command.Stdin = c.Stdin
	}
	if c.Stdout != nil {
		command.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		command.Stderr = c.Stderr
	}
	err = inNamespaces([]namespace{
		{base + "pid", unix.CLONE_NEWPID}, // for children, that is, the program
		{base + "net", unix.CLONE_NEWNET},
		{base + "uts", unix.CLONE_NEWUTS},
		{base + "ipc", unix.CLONE_NEWIPC},
		{base + "mnt", unix.CLONE_NEWNS}, // last, as it changes what the paths mean
	}, command.Start)
	if err != nil {
		return nil, fmt.Errorf("run %s on machine %s: %w", c.Args[0], m.Spec.Name, err)
	}
	return command, nil
}

// Stop ends everything on the machine and removes its cgroup.
func (m Machine) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.Init.Kill(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.Spec.Name, err)
	}
	if m.Spec.Cgroup == "" {
		return nil
	}
	return RemoveCgroup(ctx, m.Spec.Cgroup)
}

func extendPath(env, dirs []string) []string {
	search := strings.Join(dirs, ":")
	var extended []string
	for _, variable := range env {
		if path, found := strings.CutPrefix(variable, "PATH="); found {
			search = strings.Trim(search+":"+path, ":")
			continue
		}
		extended = append(extended, variable)
	}
	return append(extended, "PATH="+search)
}
