// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespace is one to enter: the path of its handle and its kind as a CLONE_NEW* flag.
type namespace struct {
	path string
	kind int
}

// inNamespaces calls a function on a thread that has entered namespaces. The thread is thrown away
// afterwards: it cannot be brought back to the state it had.
func inNamespaces(namespaces []namespace, run func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so the runtime ends the thread with this goroutine
		result <- func() error {
			if err := enter(namespaces); err != nil {
				return err
			}
			return run()
		}()
	}()
	return <-result
}

// InNetns calls a function on a thread in the network namespace with this path.
func InNetns(path string, run func() error) error {
	return inNamespaces([]namespace{{path, unix.CLONE_NEWNET}}, run)
}

func enter(namespaces []namespace) error {
	handles := make([]*os.File, len(namespaces))
	for i, wanted := range namespaces { // all of them first: entering one may hide the path of another
		handle, err := os.Open(wanted.path)
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		defer handle.Close()
		handles[i] = handle
	}
	// The mount namespace cannot be entered by a thread that shares its root and working directory
	// with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	for i, handle := range handles {
		if err := unix.Setns(int(handle.Fd()), namespaces[i].kind); err != nil {
			return fmt.Errorf("enter namespace %s: %w", namespaces[i].path, err)
		}
	}
	return nil
}

// ExecInNetns replaces this process by a program in a network namespace. It returns only after an
// error.
func ExecInNetns(netns string, args, env, path []string) error {
	return InNetns(netns, func() error {
		env := extendPath(env, path)
		program, err := lookPath(args[0], env)
		if err != nil {
			return err
		}
		return fmt.Errorf("run %s: %w", program, unix.Exec(program, args, env))
	})
}

// lookPath finds a program in the PATH of an environment that is not this process's.
func lookPath(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, variable := range env {
		path, found := strings.CutPrefix(variable, "PATH=")
		if !found {
			continue
		}
		for dir := range strings.SplitSeq(path, ":") {
			if found, err := exec.LookPath(dir + "/" + program); err == nil && dir != "" {
				return found, nil
			}
		}
	}
	return "", &exec.Error{Name: program, Err: errors.New("not found in PATH")}
}
