// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// setUp runs as the first process of a new machine, in new namespaces that still look like the old
// ones.
func setUp(spec Spec) error {
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	var hierarchies []hierarchy
	if spec.Cgroup != "" {
		var err error
		if hierarchies, err = readHierarchies(); err != nil {
			return err
		}
		if err := createCgroups(hierarchies, spec.Cgroup); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make cgroup namespace: %w", err)
		}
	}
	// Taken before the mounts below hide or remove the way to them.
	varDir, err := openTree(spec.Var)
	if err != nil {
		return err
	}
	programs, err := openTree(spec.Programs)
	if err != nil {
		return err
	}
	if err := fillVar(spec.Var); err != nil {
		return err
	}
	// Cut off from this computer's mounts, then shared again within, as systemd has it on a real
	// node: kubelet and containerd refuse HostToContainer mounts otherwise.
	err = doAll([]mount{
		{target: "/", flags: unix.MS_REC | unix.MS_PRIVATE},
		{target: "/", flags: unix.MS_REC | unix.MS_SHARED},
	})
	if err != nil {
		return err
	}
	if err := detachAll("/proc", "/sys", "/run", "/var"); err != nil {
		return err
	}
	if err := mountKernel(hierarchies); err != nil {
		return err
	}
	if err := mountOwn(varDir, programs); err != nil {
		return err
	}
	if spec.Cgroup == "" {
		return nil
	}
	if err := settleInCgroups(); err != nil {
		return err
	}
	return hideSysctls(spec.Name)
}

// mountKernel mounts the kernel's file systems: each shows the namespaces of the process that has
// mounted it.
func mountKernel(hierarchies []hierarchy) error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []mount{
		{source: "proc", target: "/proc", kind: "proc", flags: plain},
		{source: "sysfs", target: "/sys", kind: "sysfs", flags: plain},
		{source: "bpf", target: "/sys/fs/bpf", kind: "bpf", flags: plain, data: "mode=700"},
	}
	return doAll(append(steps, cgroupMounts(hierarchies)...))
}

// mountOwn gives the machine its own /var and /run.
func mountOwn(varDir, programs int) error {
	if err := moveTree(varDir, "/var"); err != nil {
		return err
	}
	run := mount{source: "tmpfs", target: "/run", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV,
		data: "mode=755"}
	if err := run.do(); err != nil {
		return err
	}
	for _, dir := range []string{"/run/lock", ProgramsDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("fill /run: %w", err)
		}
	}
	return moveTree(programs, ProgramsDir)
}

func fillVar(dir string) error {
	for _, name := range []string{"lib", "log", "cache", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("fill /var: %w", err)
		}
	}
	for name, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			return fmt.Errorf("fill /var: %w", err)
		}
	}
	return nil
}

// detachAll removes this computer's mounts at and below directories that will show something else.
// Hidden mounts would keep alive what they show, such as network namespaces that others want to
// remove.
func detachAll(dirs ...string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var targets []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		target := fields[4]
		within := func(dir string) bool { return target == dir || strings.HasPrefix(target, dir+"/") }
		if slices.ContainsFunc(dirs, within) {
			targets = append(targets, target)
		}
	}
	for _, target := range slices.Backward(targets) {
		target = unescape.Replace(target)
		err := unix.Unmount(target, unix.MNT_DETACH)
		// gone with another, or hidden
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", target, err)
		}
	}
	return nil
}

// unescape undoes what the kernel does to awkward characters in mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// openTree makes a mount of a directory that is not anywhere yet.
func openTree(dir string) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("take hold of %s: %w", dir, err)
	}
	return tree, nil
}

// moveTree attaches such a mount at its target.
func moveTree(tree int, target string) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return unix.Close(tree)
}

// hideSysctls puts files in the place of the settings that kubelet insists on and that belong to
// the whole computer, so that it finds them as it likes them and changes none.
func hideSysctls(name string) error {
	wanted := map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
	for key, value := range wanted {
		file := filepath.Join("/run/cluster/sysctl", filepath.Base(key))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("hide sysctls of %s: %w", name, err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("hide sysctls of %s: %w", name, err)
		}
		target := filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); err != nil {
			continue // a kernel without it
		}
		if err := (mount{source: file, target: target, flags: unix.MS_BIND}).do(); err != nil {
			return err
		}
	}
	return nil
}

type mount struct {
	source, target, kind, data string
	flags                      uintptr
	mkdir                      bool // make the target first
}

func (m mount) do() error {
	if m.mkdir {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

func doAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}
