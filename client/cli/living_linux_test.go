// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/home"
)

func TestADaemonThatHangsIsToldWithHowToEndIt(t *testing.T) {
	w := newWorld(t)
	w.Patience = 200 * time.Millisecond
	daemon := asProcess(t, w, env.ForegroundCommand)
	require.NoError(t, daemon.Start())
	t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
	require.Eventually(t, func() bool {
		_, closer, err := w.Dial(t.Context())
		if err == nil {
			_ = closer.Close()
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, daemon.Process.Signal(syscall.SIGSTOP))
	want := fmt.Sprintf("error: the daemon does not answer — end it with `kill -9 %d`, and run the command "+
		"again: the next one goes on with its session\n", daemon.Process.Pid)
	for _, args := range [][]string{{"status"}, {"list"}, {"intercept", "orders"}, {"leave", "orders"},
		{"quit"}, {"quit", "-s"}, {"connect"}, {"version"}} {
		began := time.Now()
		code := w.do(args...)
		if args[0] == "version" { // what it is itself it can always say
			assert.Equal(t, 0, code)
			continue
		}
		assert.Equal(t, exitError, code, args)
		assert.Contains(t, w.stderr.String(), want, args)
		assert.Less(t, time.Since(began), 15*time.Second, args)
	}
	require.NoError(t, daemon.Process.Signal(syscall.SIGCONT))
	w.Patience = 20 * time.Second
	assert.Equal(t, 0, w.do("status"), "it was only asleep: %s", &w.stderr)
}

func TestADaemonOfAnotherVersionIsReplacedIfItHasNoSession(t *testing.T) {
	for name, args := range map[string][]string{"connect": {"connect"},
		"intercept": {"intercept", "orders"}, "list": {"list"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.daemon.version = "v1.0.0"
			w.connected(false)
			w.Launch = func(context.Context) error {
				w.launches++
				w.daemon.version = testVersion
				w.connected(false)
				return nil
			}
			require.Equal(t, 0, w.do(args...), w.stderr.String())
			assert.Equal(t, 1, w.launches)
			assert.Contains(t, w.stderr.String(),
				"The running daemon is v1.0.0 and this is sidestep v1.2.3: it is replaced\n")
		})
	}
	t.Run("and not if it has", func(t *testing.T) {
		w := newWorld(t)
		w.daemon.version = "v1.0.0"
		w.connected(true)
		assert.Equal(t, exitError, w.do("list"))
		assert.Equal(t, "sidestep list: error: the running daemon is v1.0.0 and this is sidestep v1.2.3 — run "+
			"`sidestep quit -s` and try again\n", w.stderr.String())
		assert.Zero(t, w.launches)
	})
}

func TestWhatHasEndedIsToldByTheNextCommand(t *testing.T) {
	ended := &daemonpb.EndedInfo{
		Name: "stock", Namespace: "shop", WorkloadKind: "Deployment", Workload: "stock", At: 1767323045,
		Reason: "this laptop was away for 1h, and the traffic manager keeps intercepts for 15m; it cannot be recreated" +
			": port http of Deployment stock is intercepted by bob@desk",
	}
	want := "warning: intercept stock of Deployment stock in namespace shop has ended: " +
		ended.GetReason() + "\n"
	for _, args := range [][]string{{"list"}, {"connect"}, {"intercept", "orders"}, {"leave", "orders"}} {
		w := newWorld(t)
		w.daemon.status = statusOf(&daemonpb.InterceptInfo{Name: "orders"})
		w.daemon.ended = []*daemonpb.EndedInfo{ended}
		w.connected(true)
		assert.Equal(t, 0, w.do(args...))
		assert.Contains(t, w.stderr.String(), want, args)
		w.do(args...)
		assert.NotContains(t, w.stderr.String(), "has ended", "it is told once")
	}

	again := &daemonpb.EndedInfo{
		Name: "orders", Namespace: "shop", WorkloadKind: "Deployment", Workload: "orders", Again: true,
		Reason: "this laptop was away for 1h, and the traffic manager keeps intercepts for 15m",
	}
	w := newWorld(t)
	w.daemon.status.Ended = []*daemonpb.EndedInfo{again, ended}
	w.daemon.ended = []*daemonpb.EndedInfo{ended}
	w.connected(true)
	golden(t, "status with intercepts that have ended", w.transcript("status")+
		w.transcript("status", "--output", "json"))
	w.do("list")
	assert.NotContains(t, w.stderr.String(), "has ended", "status has told")
}

func TestASocketInADirectoryOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can leave its rights and take them up again")
	}
	w := newWorld(t)
	dir := t.TempDir()
	w.socket = filepath.Join(dir, "daemon.sock")
	listener, err := net.Listen("unix", w.socket)
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, os.WriteFile(home.Lock(w.socket), []byte("1\n"), 0o600))
	cmd := asProcess(t, w, "status")
	copied := filepath.Join("/var/tmp", filepath.Base(dir)+".test")
	content, err := os.ReadFile(cmd.Path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, content, 0o755))
	t.Cleanup(func() { _ = os.Remove(copied) })
	cmd.Path = copied
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	out, _ := cmd.CombinedOutput()
	assert.Contains(t, string(out), "sidestep status: error: the daemon's socket "+w.socket+
		" is in a directory of another user — set SIDESTEP_DAEMON_SOCKET to a path of your own\n")
}

func TestATrafficManagerOfAVersionThatIsNotTestedWithThisOneIsWarnedOf(t *testing.T) {
	for manager, want := range map[string]string{
		testVersion: "", "v1.1.0": "", "v1.3.9": "", "v0.0.0-dev": "", "3f2a9c1": "",
		"v1.0.8": "warning: the traffic manager is v1.0.8 and this is sidestep v1.2.3: versions that are more " +
			"than one minor apart are not tested together — run `sidestep helm upgrade`\n",
		"v1.4.0": "warning: the traffic manager is v1.4.0 and this is sidestep v1.2.3: versions that are more " +
			"than one minor apart are not tested together — get sidestep v1.4.0\n",
		"v2.0.0": "warning: the traffic manager is v2.0.0 and this is sidestep v1.2.3: versions that are more " +
			"than one minor apart are not tested together — get sidestep v2.0.0\n",
	} {
		w := newWorld(t)
		w.daemon.status.ManagerVersion = manager
		w.connected(false)
		require.Equal(t, 0, w.do("connect"))
		assert.Equal(t, want, w.stderr.String(), manager)
		require.Equal(t, 0, w.do("status"))
		assert.Equal(t, want, w.stderr.String(), manager)
	}
}
