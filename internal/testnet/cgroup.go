package testnet

import (
	"bufio"
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

// Cgroup makes control groups for the pod, as a kubelet does on a node with the unified hierarchy, and lets the node's /proc show
// the pod's process there. It gives the directory of the container's group.
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
func (p *Pod) SetCgroup(t testing.TB, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(p.node.proc, fmt.Sprint(1000+p.number), "cgroup"), []byte(text), 0o644))
}

// Inhabit lets the node's /proc show a process of another pod in this one's network namespace.
func (p *Pod) Inhabit(t testing.TB, uid string) {
	t.Helper()
	own, dir := filepath.Join(p.node.proc, fmt.Sprint(1000+p.number)), filepath.Join(p.node.proc, fmt.Sprint(5000+p.number))
	require.NoError(t, os.CopyFS(dir, os.DirFS(own)))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup"), []byte("1:name=systemd:/kubepods/pod"+uid+"/app\n0::"+unified(t)+"\n"), 0o644))
}

// Start starts a program in the pod's namespace and, unless it is empty, a control group. It is killed with the test.
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

// cgroupRoot is where the unified hierarchy is mounted.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	f, err := os.Open("/proc/self/mounts")
	require.NoError(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Fatal("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
	return ""
}

// OwnCgroup is the directory of the control group that this process is in.
func OwnCgroup(t testing.TB) string {
	t.Helper()
	return filepath.Join(cgroupRoot(t), unified(t))
}

// unified is the group of the unified hierarchy that this process is in.
func unified(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	return "/"
}
