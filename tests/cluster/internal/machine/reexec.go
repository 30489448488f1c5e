// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// Names under which this program starts itself, because only a program can act between fork and the
// start of another program.
const (
	initName = "cluster-machine-init" // makes a machine and becomes its first process
	reapName = "cluster-machine"      // is the first process of a finished machine
	joinName = "cluster-machine-join" // becomes a program on a machine
)

// ready is the message of a machine that is set up.
const ready = "ready"

type joinOrder struct {
	Args   []string
	Dir    string
	Cgroup bool
}

// inherited is the first descriptor after the standard ones.
const inherited = 3

// Reexec does the work of the names above and does not return then.
func Reexec() {
	switch os.Args[0] {
	case initName:
		runInit()
	case reapName:
		reap()
	case joinName:
		fmt.Fprintln(os.Stderr, join())
		os.Exit(127)
	}
}

func runInit() {
	runtime.LockOSThread()
	report := os.NewFile(inherited, "report")
	unix.CloseOnExec(inherited)
	var spec Spec
	err := json.Unmarshal([]byte(os.Args[1]), &spec)
	if err == nil {
		err = setUp(spec)
	}
	if err == nil {
		if _, err = report.WriteString(ready); err == nil {
			// A fresh start makes this thread, the only one with the right cgroup namespace, the
			// process's first.
			err = unix.Exec("/proc/self/exe", []string{reapName, spec.Name}, os.Environ())
		}
	}
	fmt.Fprintln(report, err)
	os.Exit(1)
}

// reap buries orphans for ever. Only SIGKILL from outside ends it.
func reap() {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid > 0 || err == unix.EINTR {
			continue
		}
		<-children
	}
}

func join() error {
	runtime.LockOSThread()
	var order joinOrder
	if err := json.Unmarshal([]byte(os.Args[1]), &order); err != nil {
		return err
	}
	if order.Cgroup {
		// Before entering the cgroup namespace: from inside the way from here to there may be
		// forbidden (nsdelegate).
		if err := joinCgroups(); err != nil {
			return err
		}
		unix.CloseOnExec(inherited)
		if err := unix.Setns(inherited, unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("enter cgroup namespace: %w", err)
		}
	}
	if order.Dir != "" {
		if err := os.Chdir(order.Dir); err != nil { // a directory that only this computer has
			if err := os.Chdir("/"); err != nil {
				return err
			}
		}
	}
	program, err := lookPath(order.Args[0], os.Environ())
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, order.Args, os.Environ()))
}
