package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// setUp runs as the first process of a new machine, in new namespaces that still look like the old ones.
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
	// Handles of directories whose paths the mounts below hide.
	varDir, err := os.Open(spec.Var)
	if err != nil {
		return fmt.Errorf("open /var of the machine: %w", err)
	}
	defer varDir.Close()
	programs, err := os.Open(spec.Programs)
	if err != nil {
		return fmt.Errorf("open programs: %w", err)
	}
	defer programs.Close()
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

// mountKernel mounts what shows the kernel: each such mount shows the namespaces of whoever made it.
func mountKernel(hierarchies []hierarchy) error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []mount{
		// Cut off from this computer's mounts, then shared again within, as systemd has it on a real node: kubelet
		// and containerd refuse HostToContainer mounts otherwise.
		{target: "/", flags: unix.MS_REC | unix.MS_PRIVATE},
		{target: "/", flags: unix.MS_REC | unix.MS_SHARED},
		{source: "proc", target: "/proc", kind: "proc", flags: plain},
		{source: "sysfs", target: "/sys", kind: "sysfs", flags: plain},
		{source: "bpf", target: "/sys/fs/bpf", kind: "bpf", flags: plain, data: "mode=700"},
	}
	return doAll(append(steps, cgroupMounts(hierarchies)...))
}

// mountOwn gives the machine a /var and /run of its own.
func mountOwn(varDir, programs *os.File) error {
	links := map[string]string{"run": "/run", "lock": "/run/lock"}
	for _, dir := range []string{"lib", "log", "cache", "tmp"} {
		if err := os.MkdirAll(filepath.Join(varDir.Name(), dir), 0o755); err != nil {
			return fmt.Errorf("fill /var: %w", err)
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(varDir.Name(), name)); err != nil && !os.IsExist(err) {
			return fmt.Errorf("fill /var: %w", err)
		}
	}
	return doAll([]mount{
		{source: "tmpfs", target: "/run", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=755"},
		{source: handle(varDir), target: "/var", flags: unix.MS_BIND},
		{target: "/run/lock", mkdir: true},
		{source: handle(programs), target: ProgramsDir, flags: unix.MS_BIND, mkdir: true},
	})
}

// hideSysctls puts files in the place of the settings that kubelet insists on and that belong to the whole computer, so
// that it finds them as it likes them and changes none.
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
	if m.source == "" && m.flags == 0 {
		return nil
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

// handle is a path to an open file that no mount can hide.
func handle(file *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(file.Fd())) }
