// SPDX-License-Identifier: Apache-2.0

// Command init is the first process of a virtual machine that tests a kernel: it mounts what tests
// need, loads the modules and runs the test binaries that its file system holds, and powers the
// machine off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/vmtests/guest"
)

// results is the second serial port: the kernel writes to the first.
const results = "/dev/ttyS1"

func main() {
	out, err := open()
	if err == nil {
		err = run(out)
		if err != nil {
			guest.Say(out, guest.Problem, err.Error())
		}
		_ = unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // wait until all of it is written
	} else {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
	}
	unix.Sync()
	fmt.Fprintln(os.Stderr, "vmtest: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// open mounts what it takes to report, and opens the port.
func open() (*os.File, error) {
	for _, m := range []struct{ target, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"},
		{"/dev", "devtmpfs"}} {
		if err := mount(m.target, m.kind); err != nil {
			return nil, err
		}
	}
	out, err := os.OpenFile(results, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the port for results: %w", err)
	}
	// Bytes go as they are.
	t, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		t.Cflag = t.Cflag&^unix.CBAUD | unix.B115200 | unix.CLOCAL
		err = unix.IoctlSetTermios(int(out.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the port for results: %w", err)
	}
	return out, nil
}

func mount(target, kind string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	if err := unix.Mount(kind, target, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

func run(out io.Writer) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	guest.Say(out, guest.Release, unix.ByteSliceToString(name.Release[:]))
	text, err := os.ReadFile(guest.PlanFile)
	if err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	var plan guest.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	for _, problem := range prepare(plan.Modules) {
		guest.Say(out, guest.Problem, problem.Error())
	}
	return guest.Run(context.Background(), out, plan.Tests)
}

// prepare makes the machine what a node is. Whatever fails is left to the tests that need it.
func prepare(modules []string) (problems []error) {
	check := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	for _, m := range []struct{ target, kind string }{
		{"/tmp", "tmpfs"}, {"/run", "tmpfs"}, {"/dev/pts", "devpts"}, {"/dev/shm", "tmpfs"},
		{"/sys/fs/bpf", "bpf"}, {"/sys/fs/cgroup", "cgroup2"},
		{"/sys/kernel/tracing", "tracefs"}, {"/sys/kernel/debug", "debugfs"},
	} {
		check(mount(m.target, m.kind))
	}
	check(os.Symlink("/proc/self/fd", "/dev/fd"))
	for _, m := range modules {
		check(load(m))
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	check(err)
	// as a container runtime does
	check(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 19}))
	check(unix.Sethostname([]byte("vmtest")))
	for name, value := range map[string]string{"PATH": "/bin:/sbin", "HOME": "/tmp", "TMPDIR": "/tmp",
		"USER": "root"} {
		check(os.Setenv(name, value))
	}
	return problems
}

func load(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read a module: %w", err)
	}
	if err := unix.InitModule(data, ""); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}
