// SPDX-License-Identifier: Apache-2.0

// Package cgroup finds the control groups of pods, so that programs can be attached to them.
//
// A container seldom sees more of the node's control groups than its own. So a Tree looks as the
// node's first process does: it takes the names that that one would see, in a mount of the unified
// hierarchy (cgroup2) of its own, which is nowhere in the file system and goes with the Tree.
package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/procs"
)

// ErrNoUnified says that the node has version 1 of control groups only.
var ErrNoUnified = procs.ErrNoUnified

// ID names a control group for as long as it exists.
type ID struct{ Dev, Inode uint64 }

// Group is an open control group.
type Group struct {
	ID   ID
	Path string // as the node's first process sees it
	*os.File
}

// Tree is the unified hierarchy, as the node's first process sees it.
type Tree struct {
	proc string
	root *os.File
	view *os.File // of that process; nil if it is the own one
	home *os.File // the own view; nil as above
}

// Open opens the hierarchy. proc is where all processes of the node are seen, /proc or another
// mount of it.
func Open(proc string) (*Tree, error) {
	// Mounting the hierarchy where it is not in use would make it so.
	if _, err := unified("/proc", "self"); err != nil {
		return nil, err
	}
	t := &Tree{proc: proc}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Tree) open() (err error) {
	// The second process of a whole machine is a kernel thread. It sees what the first does, which
	// may be protected from being looked at. Without either the own view remains, which is the same
	// one where containers have no cgroup namespaces.
	for _, pid := range []string{"1", "2"} {
		if t.view, err = os.Open(filepath.Join(t.proc, pid, "ns/cgroup")); err == nil {
			break
		}
	}
	if t.view != nil {
		if t.home, err = os.Open("/proc/thread-self/ns/cgroup"); err != nil {
			return fmt.Errorf("open the process's own cgroup namespace: %w", err)
		}
	}
	return t.visit(func() error {
		fd, err := mount()
		if err != nil {
			return fmt.Errorf("mount the node's control groups: %w (the node agent needs CAP_SYS_ADMIN)", err)
		}
		t.root = os.NewFile(uintptr(fd), "cgroup2")
		return nil
	})
}

// Close lets go of the hierarchy. Groups that were opened stay open.
func (t *Tree) Close() error {
	var errs []error
	for _, f := range []*os.File{t.root, t.view, t.home} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// OfPod opens the groups that hold the processes of a pod and as little else as possible: the pod's
// own group, which all its containers are below; where the node's unified hierarchy does not follow
// its pods (a hybrid of both versions), the groups that the processes are in.
func (t *Tree) OfPod(uid string, pids []string) (groups []*Group, err error) {
	var paths []string
	err = t.visit(func() error {
		var errs []error
		for _, pid := range pids {
			path, err := unified(t.proc, pid)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			paths = append(paths, procs.PodGroup(path, uid))
		}
		if len(paths) == 0 {
			return cmp.Or(errors.Join(errs...), errors.New("the pod has no process"))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		g, err := t.group(path)
		if err != nil {
			return nil, errors.Join(err, closeAll(groups))
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// Own opens the group that this process is in.
func (t *Tree) Own() (g *Group, err error) {
	var path string
	if err := t.visit(func() (err error) {
		path, err = unified("/proc", "self")
		return err
	}); err != nil {
		return nil, err
	}
	return t.group(path)
}

func (t *Tree) group(path string) (*Group, error) {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return nil, fmt.Errorf("open control group %s: it is outside of those that this process sees (the node agent needs CAP_SYS_PTRACE and hostPID)", path)
	}
	// O_NOFOLLOW is enough: there are no links in this file system.
	fd, err := unix.Openat(int(t.root.Fd()), "."+path,
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open control group %s: %w", path, err)
	}
	g := &Group{Path: path, File: os.NewFile(uintptr(fd), path)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("identify control group %s: %w", path, err), g.Close())
	}
	g.ID = ID{Dev: uint64(st.Dev), Inode: st.Ino}
	return g, nil
}

// visit runs fn in the cgroup namespace of the node's first process, as netns.Visit does.
func (t *Tree) visit(fn func() error) error {
	if t.view == nil {
		return fn()
	}
	return netns.Visit("the cgroup namespace of the node", unix.CLONE_NEWCGROUP, int(t.view.Fd()), int(t.home.Fd()), fn)
}

// mount makes a mount of the unified hierarchy that has no place in the file system. There is one
// such hierarchy however often it is mounted; its root is that of the thread's cgroup namespace.
func mount() (fd int, err error) {
	ctx, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, err
	}
	return unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// unified returns the group of the unified hierarchy that a process is in, as the thread sees it.
func unified(proc, pid string) (string, error) {
	groups, err := procs.At(proc).Cgroups(pid)
	if err != nil {
		return "", err
	}
	return groups.Unified()
}

func closeAll(groups []*Group) error {
	var errs []error
	for _, g := range groups {
		errs = append(errs, g.Close())
	}
	return errors.Join(errs...)
}
