// SPDX-License-Identifier: Apache-2.0

package environ

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/procs"
)

const (
	uid = "12345678-9abc-def0-1234-56789abcdef0"
	id  = "4f1c8a9be0d15ad0a3a05d5a0f2f7c1f0f4a8d1b2c3d4e5f60718293a4b5c6d7"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
		err  error
	}{
		"anything but NUL may be in a value": {"A=1\x00B=x=y\n$z 'q'\"\\\x00C=\x00D=\xff\xfe\x00",
			[]string{"A=1", "B=x=y\n$z 'q'\"\\", "C=", "D=\xff\xfe"}, nil},
		"names need not be identifiers":     {"my.key-1=v\x00", []string{"my.key-1=v"}, nil},
		"the last one without its NUL":      {"A=1\x00B=2", []string{"A=1", "B=2"}, nil},
		"without a name":                    {"=x\x00A=1\x00", []string{"A=1"}, nil},
		"empty":                             {"", nil, nil},
		"overwritten with zeroes":           {strings.Repeat("\x00", 300), nil, ErrOverwritten},
		"overwritten by the end of a title": {"rocess\x00\x00\x00\x00B=2\x00", nil, ErrOverwritten},
		"overwritten in the middle":         {"A=1\x00\x00\x00C=2\x00", nil, ErrOverwritten},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse([]byte(c.text))
			require.ErrorIs(t, err, c.err)
			var texts []string
			for _, v := range got {
				texts = append(texts, string(v))
			}
			assert.Equal(t, c.want, texts)
		})
	}
	_, err := parse(make([]byte, MaxSize+1))
	assert.ErrorContains(t, err, "larger than")
}

// container creates the cgroup of a container and returns a function that starts processes in it.
func container(t *testing.T, id string) func(cmd *exec.Cmd) {
	t.Helper()
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err) // a virtual machine for tests has no programs
	}
	top := filepath.Join(testnet.OwnCgroup(t),
		fmt.Sprintf("sidestep-environ-%d-%s", os.Getpid(),
			strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))))
	dir := filepath.Join(top, "pod"+uid, id)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		for d := dir; len(d) >= len(top); d = filepath.Dir(d) {
			_ = unix.Rmdir(d)
		}
	})
	return func(cmd *exec.Cmd) {
		group, err := os.Open(dir)
		require.NoError(t, err)
		defer group.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD, cmd.SysProcAttr.Setpgid = true,
			int(group.Fd()), true
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
			require.Eventually(t, func() bool {
				procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				return err != nil || len(procs) == 0
			}, 20*time.Second, 5*time.Millisecond)
		})
	}
}

func texts(variables [][]byte) []string {
	var all []string
	for _, v := range variables {
		all = append(all, string(v))
	}
	return all
}

func TestTheFirstProcessOfAContainer(t *testing.T) {
	start := container(t, id)
	// An entrypoint of an image adds to the environment and is then replaced by the app, which is
	// the first process of a PID namespace and does not run as root.
	app := exec.Command("/usr/bin/env", "-u", "GONE", "ADDED=by the entrypoint", "sleep", "600")
	app.Env = []string{"PATH=/usr/bin:/bin", "A=one\ntwo", "my.key=$x='y'", "EMPTY=", "BYTES=\xff\xfe",
		"GONE=1"}
	app.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID,
		Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	start(app)
	reader := Reader{Proc: "/proc"}
	require.EventuallyWithT(t, func(c *assert.CollectT) { // when it has come to exec
		got, err := reader.Read(uid, id)
		assert.NoError(c, err)
		all := texts(got)
		assert.Contains(c, all, "ADDED=by the entrypoint")
		assert.NotContains(c, all, "GONE=1")
		for _, v := range app.Env[1:5] {
			assert.Contains(c, all, v)
		}
	}, 20*time.Second, 10*time.Millisecond)

	later := exec.Command("/bin/sleep", "600") // as kubectl exec does
	later.Env = []string{"LATER=1"}
	start(later)
	got, err := reader.Read(uid, id)
	require.NoError(t, err)
	assert.NotContains(t, texts(got), "LATER=1")

	require.NoError(t, app.Process.Kill())
	_ = app.Wait()
	got, err = reader.Read(uid, id)
	require.NoError(t, err)
	assert.Equal(t, []string{"LATER=1"}, texts(got), "what is left")

	_, err = reader.Read(uid, strings.Repeat("0", 64))
	assert.ErrorIs(t, err, ErrNotFound)
	_, err = reader.Read("00000000-9abc-def0-1234-56789abcdef0", id)
	assert.ErrorIs(t, err, ErrNotFound)
	for _, wrong := range []string{"", "../../etc", "a/b", "short"} {
		_, err = reader.Read(uid, wrong)
		assert.ErrorContains(t, err, "is not the ID of a container", wrong)
	}
}

// The node agent has no right to read files that others have for themselves alone.
func TestTheCapabilitiesOfTheChartSuffice(t *testing.T) {
	start := container(t, id)
	app := exec.Command("/bin/sleep", "600")
	app.Env = []string{"A=1"}
	app.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	start(app)
	type answer struct {
		variables [][]byte
		err       error
	}
	read := func(capabilities ...int) answer {
		c := make(chan answer)
		go func() {
			runtime.LockOSThread() // which ends with it
			if err := confine(capabilities...); err != nil {
				c <- answer{err: err}
				return
			}
			if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", app.Process.Pid)); !errors.Is(err,
				os.ErrPermission) {
				c <- answer{err: fmt.Errorf("the file may be read: %w", err)}
				return
			}
			v, err := Reader{Proc: "/proc"}.Read(uid, id)
			c <- answer{v, err}
		}()
		return <-c
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) { // when it has come to exec
		got := read(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE)
		assert.NoError(c, got.err)
		assert.Equal(c, []string{"A=1"}, texts(got.variables))
	}, 20*time.Second, 10*time.Millisecond)
	assert.ErrorContains(t, read(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN).err,
		"needs CAP_SYS_PTRACE")
}

// confine leaves the thread these capabilities alone.
func confine(capabilities ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range capabilities {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

func TestAProcessThatHasEndedHasNoEnvironment(t *testing.T) {
	start := container(t, id)
	zombie := exec.Command("/bin/true")
	zombie.Env = []string{"A=1"}
	start(zombie)
	require.Eventually(t, func() bool {
		stat, err := procs.At("/proc").Stat(strconv.Itoa(zombie.Process.Pid))
		return err == nil && stat.Ended()
	}, 20*time.Second, time.Millisecond)
	_, err := Reader{Proc: "/proc"}.Read(uid, id)
	assert.ErrorIs(t, err, ErrNotFound)
}

func TestNginxOverwritesItsEnvironment(t *testing.T) {
	start := container(t, id)
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(conf,
		[]byte("daemon off; pid "+dir+
			"/pid; error_log stderr; events {} http { access_log off; server { listen unix:"+dir+
			"/s; } }"), 0o644))
	nginx := exec.Command("nginx", "-c", conf)
	nginx.Env = append(os.Environ(), "A=1")
	start(nginx)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := Reader{Proc: "/proc"}.Read(uid, id)
		assert.ErrorIs(c, err, ErrOverwritten)
	}, 20*time.Second, 10*time.Millisecond)
}
