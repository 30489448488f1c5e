// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupDir is where machines, and this computer, have their cgroup mounts.
const cgroupDir = "/sys/fs/cgroup"

// daemons is the cgroup of a machine's own programs in a version 2 hierarchy, where a cgroup that
// delegates controllers to its children may have no processes.
const daemons = "daemons"

// hierarchy is one mounted tree of cgroups.
type hierarchy struct {
	mountpoint string
	unified    bool   // version 2
	options    string // controllers or name of a version 1 hierarchy
}

// readHierarchies finds the cgroup mounts: one of version 2, or several of version 1 with or
// without one of version 2 that has no controllers.
func readHierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	defer file.Close()
	found, err := parseHierarchies(file)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no cgroups are mounted below %s", cgroupDir)
	}
	return found, nil
}

// parseHierarchies reads the text of /proc/PID/mountinfo, proc(5).
func parseHierarchies(mountinfo io.Reader) ([]hierarchy, error) {
	var found []hierarchy
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		if !ok {
			continue
		}
		place, what := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(what) < 3 || !strings.HasPrefix(what[0], "cgroup") {
			continue
		}
		mountpoint := place[4]
		if mountpoint != cgroupDir && !strings.HasPrefix(mountpoint, cgroupDir+"/") {
			continue
		}
		// hidden
		found = slices.DeleteFunc(found, func(h hierarchy) bool { return h.mountpoint == mountpoint })
		found = append(found, hierarchy{
			mountpoint: mountpoint,
			unified:    what[0] == "cgroup2",
			options:    controllers(what[2]),
		})
	}
	return found, lines.Err()
}

// controllers picks the part of a version 1 hierarchy's mount options that says which hierarchy it
// is.
func controllers(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		switch {
		case option == "rw", option == "ro", option == "xattr", option == "seclabel",
			option == "clone_children",
			option == "noprefix", option == "cpuset_v2_mode", strings.HasPrefix(option, "release_agent="):
		default:
			kept = append(kept, option)
		}
	}
	return strings.Join(kept, ",")
}

// createCgroups makes the machine's cgroup in each hierarchy and moves this process into it.
func createCgroups(hierarchies []hierarchy, name string) error {
	for _, h := range hierarchies {
		dir := filepath.Join(h.mountpoint, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if h.unified {
			if err := handOut(h.mountpoint); err != nil {
				return err
			}
		} else if err := copyCPUSet(h.mountpoint, dir); err != nil {
			return err
		}
		if err := moveHere(dir); err != nil {
			return err
		}
	}
	return nil
}

// settleInCgroups moves this process, now in its cgroup namespace, to where a machine's programs
// live.
func settleInCgroups() error {
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if !h.unified {
			continue
		}
		dir := filepath.Join(h.mountpoint, daemons)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := moveHere(dir); err != nil {
			return err
		}
		if err := handOut(h.mountpoint); err != nil {
			return err
		}
	}
	return nil
}

// joinCgroups moves this process, which has a machine's mounts, into the machine's cgroups.
func joinCgroups() error {
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := h.mountpoint
		if h.unified {
			dir = filepath.Join(dir, daemons)
		}
		if err := moveHere(dir); err != nil {
			return err
		}
	}
	return nil
}

func moveHere(cgroup string) error {
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// handOut enables a version 2 cgroup's controllers for its children.
func handOut(cgroup string) error {
	available, err := os.ReadFile(filepath.Join(cgroup, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for controller := range strings.FieldsSeq(string(available)) {
		err := os.WriteFile(filepath.Join(cgroup, "cgroup.subtree_control"), []byte("+"+controller), 0)
		if err != nil && slices.Contains([]string{"cpu", "cpuset", "memory", "pids"}, controller) {
			return fmt.Errorf("enable cgroup controller %s, which kubelet needs: %w", controller, err)
		}
	}
	return nil
}

// copyCPUSet fills a new version 1 cpuset. It begins without CPUs, and accepts no process until it
// has some.
func copyCPUSet(from, to string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(from, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another controller
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(to, file), value, 0); err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return nil
}

// cgroupMounts are the mounts that show hierarchies with the machine's cgroup as the root.
func cgroupMounts(hierarchies []hierarchy) []mount {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME
	if len(hierarchies) == 1 && hierarchies[0].unified && hierarchies[0].mountpoint == cgroupDir {
		return []mount{{source: "cgroup2", target: cgroupDir, kind: "cgroup2", flags: flags}}
	}
	if len(hierarchies) == 0 {
		return nil
	}
	mounts := []mount{{source: "tmpfs", target: cgroupDir, kind: "tmpfs", flags: flags, data: "mode=755"}}
	for _, h := range hierarchies {
		m := mount{source: "cgroup", target: h.mountpoint, kind: "cgroup", flags: flags,
			data: h.options, mkdir: true}
		if h.unified {
			m.source, m.kind, m.data = "cgroup2", "cgroup2", ""
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// RemoveCgroup removes a machine's cgroup, whose processes are ending, from every hierarchy.
func RemoveCgroup(ctx context.Context, name string) error {
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		for {
			err := removeTree(filepath.Join(h.mountpoint, name))
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup: %w", err)
			case <-time.After(20 * time.Millisecond): // it is busy until the last process is buried
			}
		}
	}
	return nil
}

// removeTree removes a cgroup and those below, deepest first. The files in them are not files that
// could be removed.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}
