// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/daemon"
)

// home is where a daemon of its own process lives.
type home struct{ Socket, CacheDir, LogFile string }

// TestMain is also the daemon's main, for tests that need a process to kill.
func TestMain(m *testing.M) {
	if encoded := os.Getenv("SIDESTEP_TEST_DAEMON"); encoded != "" {
		var o home
		if err := json.Unmarshal([]byte(encoded), &o); err != nil {
			panic(err)
		}
		if err := daemon.Run(context.Background(),
			daemon.Options{Socket: o.Socket, CacheDir: o.CacheDir, LogFile: o.LogFile,
				LogLevel: "debug"}); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// spawn starts the daemon as a process of its own.
func (w *world) spawn() *exec.Cmd {
	encoded, err := json.Marshal(home{w.options.Socket, w.options.CacheDir, w.options.LogFile})
	require.NoError(w, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SIDESTEP_TEST_DAEMON="+string(encoded))
	cmd.Stderr = os.Stderr
	require.NoError(w, cmd.Start())
	w.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
	})
	w.dial()
	return cmd
}

func TestADaemonThatIsKilledIsResumed(t *testing.T) {
	for name, signal := range map[string]os.Signal{"kill -9": syscall.SIGKILL, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cmd := w.spawn()
			session := w.connect().GetSession()
			w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
			require.NoError(t, cmd.Process.Signal(signal))
			_ = cmd.Wait()
			assert.Len(t, w.api.Intercepts(), 1)

			w.spawn()
			w.eventually(func() bool { return len(w.status().GetIntercepts()) == 1 },
				"the intercept is known again")
			got, err := w.says(w.object(), 5)
			require.NoError(t, err)
			assert.Equal(t, "hello", got)
			info := w.connect()
			assert.Equal(t, session, info.GetSession())
			assert.Equal(t, "shop", info.GetNamespace())
		})
	}
}

func TestQuitEndsEverything(t *testing.T) {
	w := newWorld(t)
	cmd := w.spawn()
	w.connect()
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001})
	_, err := w.daemon.Quit(t.Context(), &daemonpb.Empty{})
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	assert.Empty(t, w.api.Intercepts())
	for _, path := range []string{w.options.Socket, w.options.Socket + ".lock",
		filepath.Join(w.options.CacheDir, "session.json")} {
		assert.NoFileExists(t, path)
	}
}

func TestOneDaemonPerSocket(t *testing.T) {
	t.Run("a second one ends quietly", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		assert.NoError(t, daemon.Run(t.Context(), w.options))
		w.status()
	})
	t.Run("of many that start at once one serves", func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 8)
		for range 8 {
			go func() { ended <- daemon.Run(ctx, w.options) }()
		}
		for range 7 {
			assert.NoError(t, <-ended)
		}
		w.dial()
		w.status()
		cancel()
		assert.NoError(t, <-ended)
	})
	t.Run("a dead daemon's socket is replaced", func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, os.MkdirAll(filepath.Dir(w.options.Socket), 0o700))
		dead, err := net.Listen("unix", w.options.Socket)
		require.NoError(t, err)
		dead.(*net.UnixListener).SetUnlinkOnClose(false)
		require.NoError(t, dead.Close())
		w.start()
		info, err := os.Stat(w.options.Socket)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		w.status()
	})
	t.Run("a daemon whose socket is removed ends", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		require.NoError(t, os.Remove(w.options.Socket))
		select {
		case err := <-w.ended:
			assert.NoError(t, err)
			w.ended <- err
		case <-time.After(patience):
			t.Fatal("it goes on")
		}
	})
	t.Run("the directory is for the user alone", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		info, err := os.Stat(filepath.Dir(w.options.Socket))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	})
	t.Run("a connection that says nothing does not keep it alive", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		silent, err := net.Dial("unix", w.options.Socket)
		require.NoError(t, err)
		defer func() { _ = silent.Close() }()
		_, err = io.ReadFull(silent, make([]byte, 9)) // the server's SETTINGS: it was accepted
		require.NoError(t, err)
		w.stop()
	})
	t.Run("a path too long for a socket is explained", func(t *testing.T) {
		err := daemon.Run(t.Context(), daemon.Options{Socket: "/tmp/" + strings.Repeat("x", 120)})
		assert.ErrorContains(t, err, "set SIDESTEP_DAEMON_SOCKET to a shorter one")
	})
}

func TestADamagedSessionIsPutAside(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, os.MkdirAll(w.options.CacheDir, 0o700))
	file := filepath.Join(w.options.CacheDir, "session.json")
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	w.start()
	assert.Contains(t, w.status().GetMessage(), "cannot be resumed")
	assert.FileExists(t, file+".broken")
	w.connect()
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestNothingKeepsRunningAfterDisconnect(t *testing.T) {
	w := newWorld(t)
	w.start()
	round := func() {
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		_, err := w.says(w.object(), 5)
		require.NoError(t, err)
		_, err = w.daemon.Disconnect(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
	}
	round()
	before := runtime.NumGoroutine()
	for range 5 {
		round()
	}
	// Each round leaves its local process's listener.
	w.eventually(func() bool { return runtime.NumGoroutine() <= before+5+3 }, "no goroutine stays")
}
