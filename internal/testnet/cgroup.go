// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Cgroup makes control groups for the pod, as a kubelet does on a node with the unified hierarchy,
// and lets the node's /proc show the pod's process there. It gives the directory of the container's
// group.
func (p *Pod) Cgroup(t testing.TB) string {
	t.Helper()
	top := filepath.Join(cgroupRoot(t), fmt.Sprintf("sidestep-test-%d-%d", os.Getpid(), p.Inode()))
	dir := filepath.Join(top, p.slices())
	require.NoError(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		for d := dir; len(d) >= len(top); d = filepath.Dir(d) {
			require.Eventually(t, func() bool {
				err := unix.Rmdir(d) // busy until the last process is reaped
				return err == nil || os.IsNotExist(err)
			}, 10*time.Second, 5*time.Millisecond, "remove control group %s", d)
		}
	})
	rel, err := filepath.Rel(cgroupRoot(t), dir)
	require.NoError(t, err)
	p.SetCgroup(t, "0::/"+rel+"\n")
	return dir
}

// SetCgroup lets the node's /proc show the pod's process in other control groups.
func (p *Pod) SetCgroup(t testing.TB, text string) (before string) {
	t.Helper()
	file := filepath.Join(p.node.proc, fmt.Sprint(1000+p.number), "cgroup")
	old, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	return string(old)
}

// Inhabit lets the node's /proc show a process of another pod in this one's network namespace.
func (p *Pod) Inhabit(t testing.TB, uid string) {
	t.Helper()
	own, dir := filepath.Join(p.node.proc, fmt.Sprint(1000+p.number)),
		filepath.Join(p.node.proc, fmt.Sprint(5000+p.number))
	require.NoError(t, os.CopyFS(dir, os.DirFS(own)))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup"),
		[]byte("1:name=systemd:/kubepods/pod"+uid+"/app\n0::"+unified(t)+"\n"), 0o644))
}

// Start starts a program in the pod's namespace and, unless it is empty, a control group. It is
// killed with the test.
func (p *Pod) Start(t testing.TB, cgroup string, cmd *exec.Cmd) {
	t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.WaitDelay = 5 * time.Second
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		require.NoError(t, err)
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	require.NoError(t, p.Do(cmd.Start), "start %s", cmd)
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
}

// Secede moves this process to a control group of its own, so that nothing that others attach to
// the one it is in concerns it. It is to be called by TestMain. leave moves the process back, and
// removes the group.
func Secede() (leave func(), err error) {
	root, err := findCgroupRoot()
	if err != nil {
		return nil, err
	}
	path, err := findUnified()
	if err != nil {
		return nil, err
	}
	from := filepath.Join(root, path)
	own := filepath.Join(from, fmt.Sprintf("sidestep-test-of-%d", os.Getpid()))
	if err := os.Mkdir(own, 0o755); err != nil {
		return nil, err
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0)
	}
	if err := move(own); err != nil {
		return nil, errors.Join(err, unix.Rmdir(own))
	}
	return func() {
		err := move(from)
		for range 100 { // it is busy until the last child is reaped
			if err = unix.Rmdir(own); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		fmt.Fprintf(os.Stderr, "remove control group %s: %v\n", own, err)
	}, nil
}

// cgroupRoot is where the unified hierarchy is mounted.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	root, err := findCgroupRoot()
	require.NoError(t, err)
	return root
}

func findCgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

// OwnCgroup is the directory of the control group that this process is in.
func OwnCgroup(t testing.TB) string {
	t.Helper()
	return filepath.Join(cgroupRoot(t), unified(t))
}

// unified is the group of the unified hierarchy that this process is in.
func unified(t testing.TB) string {
	t.Helper()
	path, err := findUnified()
	require.NoError(t, err)
	return path
}

func findUnified() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "/", nil
}
