// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/testnet"
)

const uid = "0a0b0c0d-1111-2222-3333-000000000001"

// envSeek makes the test's program look for the groups of a process, and print their inodes.
const envSeek = "SIDESTEP_TEST_CGROUP_SEEK"

func TestMain(m *testing.M) {
	if pid := os.Getenv(envSeek); pid != "" {
		if err := seek(pid); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func seek(pid string) error {
	tree, err := Open("/proc")
	if err != nil {
		return err
	}
	defer tree.Close()
	groups, err := tree.OfPod(uid, []string{pid, pid, "4242424242"})
	if err != nil {
		return err
	}
	for _, g := range groups {
		fmt.Println(g.ID.Inode)
		_ = g.Close()
	}
	return nil
}

func inode(t *testing.T, dir string) string {
	info, err := os.Stat(dir)
	require.NoError(t, err)
	return fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino)
}

// A container has a cgroup namespace of its own, in which the names of all other groups are
// different.
func TestGroupOfAPodIsFoundFromWithinAContainer(t *testing.T) {
	pod := testnet.NewNode(t).NewPod(t)
	dir := pod.Cgroup(t)
	app := exec.Command("/proc/self/exe", "-test.run=^TestNothing$")
	app.Env = append(os.Environ(), "SIDESTEP_TEST_WAIT=1")
	stdin, err := app.StdinPipe() // it ends when this is closed
	require.NoError(t, err)
	defer stdin.Close()
	pod.Start(t, dir, app)

	agent := filepath.Join(filepath.Dir(dir), "agent.scope")
	require.NoError(t, os.Mkdir(agent, 0o755))
	t.Cleanup(func() { _ = os.Remove(agent) })
	group, err := os.Open(agent)
	require.NoError(t, err)
	defer group.Close()
	look := exec.Command("/proc/self/exe")
	look.Env = append(os.Environ(), fmt.Sprintf("%s=%d", envSeek, app.Process.Pid))
	look.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()),
		Cloneflags: syscall.CLONE_NEWCGROUP}
	out, err := look.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, inode(t, filepath.Dir(dir)), strings.TrimSpace(string(out)),
		"the group of the pod, above that of its container")
}

func TestNothing(t *testing.T) {
	if os.Getenv("SIDESTEP_TEST_WAIT") != "" {
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
}

// proc makes a directory like /proc, with processes in groups.
func proc(t *testing.T, groups map[string]string) string {
	dir := t.TempDir()
	for pid, text := range groups {
		require.NoError(t, os.Mkdir(filepath.Join(dir, pid), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, pid, "cgroup"), []byte(text), 0o644))
	}
	return dir
}

func TestOfPod(t *testing.T) {
	testnet.RequireRoot(t)
	tree, err := Open(proc(t, map[string]string{
		"10": "1:name=systemd:/kubepods/pod" + uid + "/c\n0::/\n",
		"11": "1:name=systemd:/kubepods/pod" + uid + "/c\n",
		"12": "0::/../../elsewhere\n",
		"13": "0::/nowhere/pod" + uid + "/c\n",
	}))
	require.NoError(t, err)
	defer tree.Close()
	groups, err := tree.OfPod(uid, []string{"10"})
	require.NoError(t, err)
	require.Len(t, groups, 1)
	assert.Equal(t, "/", groups[0].Path, "a hybrid, in which pods are not moved")
	require.NoError(t, groups[0].Close())
	for pid, want := range map[string]string{
		"11": ErrNoUnified.Error(),
		"12": "outside of those that this process sees",
		"13": "open control group /nowhere/pod" + uid + ": no such file or directory",
		"14": "read the control groups of process 14",
	} {
		_, err := tree.OfPod(uid, []string{pid})
		assert.ErrorContains(t, err, want)
	}
}
