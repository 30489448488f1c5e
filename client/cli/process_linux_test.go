// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/internal/version"
)

// TestMain lets this program be the command line itself, for what only a process shows: signals,
// exit codes, a terminal.
func TestMain(m *testing.M) {
	if os.Getenv("SIDESTEP_TEST_AS_PROGRAM") != "" {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// asProcess is the command line as a process of its own, with the daemon of w.
func asProcess(t *testing.T, w *world, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "SIDESTEP_TEST_AS_PROGRAM=1", "SIDESTEP_DAEMON_SOCKET="+w.socket,
		"HOME="+home, "XDG_CACHE_HOME="+home, "NO_COLOR=1", "TERM=xterm")
	return cmd
}

func withDaemon(t *testing.T) *world {
	w := newWorld(t)
	w.daemon.version = version.Version
	w.daemon.status = statusOf(&daemonpb.InterceptInfo{Name: "orders"})
	return w.connected(true)
}

// onIntercept makes the daemon hold no intercept yet, and answer with f after it has told its
// progress.
func (w *world) onIntercept(f func(context.Context,
	*daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error), progress ...string) {
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	w.daemon.status, w.daemon.intercept, w.daemon.progress = statusOf(), f, progress
}

// left are the names of the intercepts that were left.
func (w *world) left() []string {
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	return slices.Clone(w.daemon.left)
}

func exitOf(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
	}
	return cmd.ProcessState.ExitCode()
}

// buffer is written to by a process and read by the test.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(b.String(), text) }, 20*time.Second,
		10*time.Millisecond, "%q in %q", text, b)
}

func TestTheExitCodeIsThatOfTheCommand(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "kill -9 $$": 137} {
		w := withDaemon(t)
		cmd := asProcess(t, w, "intercept", "orders", "--", "sh", "-c", script)
		require.NoError(t, cmd.Start())
		assert.Equal(t, want, exitOf(t, cmd), script)
		assert.Equal(t, []string{"orders"}, w.left())
	}
}

func TestSignalsArePassedOnToTheCommandAndTheInterceptEndsWithIt(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			w := withDaemon(t)
			out := &buffer{}
			cmd := asProcess(t, w, "intercept", "orders", "--", "sh", "-c",
				`trap 'echo got; kill $!; exit 9' TERM INT HUP; sleep 60 & echo ready; wait`)
			cmd.Stdout = out
			require.NoError(t, cmd.Start())
			out.await(t, "ready")
			require.NoError(t, cmd.Process.Signal(sig))
			assert.Equal(t, 9, exitOf(t, cmd))
			assert.Equal(t, 1, strings.Count(out.String(), "got"))
			assert.Equal(t, []string{"orders"}, w.left())
		})
	}
}

func TestASignalEndsInterceptWithItsExitCode(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		w := withDaemon(t)
		called := make(chan struct{})
		w.onIntercept(func(ctx context.Context, _ *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
			close(called)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		var stderr bytes.Buffer
		cmd := asProcess(t, w, "intercept", "orders")
		cmd.Stderr = &stderr
		require.NoError(t, cmd.Start())
		<-called
		require.NoError(t, cmd.Process.Signal(sig))
		assert.Equal(t, want, exitOf(t, cmd))
		assert.Equal(t, "sidestep intercept: error: interrupted\n", stderr.String())
	}
}

// terminal is a pseudo terminal that a process is started on.
func terminal(t *testing.T, cmd *exec.Cmd, columns uint16) (typed io.Writer, shown *buffer) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	shown = &buffer{}
	go func() { _, _ = io.Copy(shown, master) }()
	return master, shown
}

func TestCtrlCAtATerminal(t *testing.T) {
	t.Run("reaches the command once, and its exit code counts", func(t *testing.T) {
		w := withDaemon(t)
		cmd := asProcess(t, w, "intercept", "orders", "--", "sh", "-c",
			`trap 'echo got' INT; echo ready; until read line; do :; done; echo "read $line"; exit 5`)
		keys, screen := terminal(t, cmd, 80)
		screen.await(t, "ready")
		_, err := keys.Write([]byte{3})
		require.NoError(t, err)
		screen.await(t, "got")
		_, err = keys.Write([]byte("typed\n"))
		require.NoError(t, err)
		assert.Equal(t, 5, exitOf(t, cmd))
		assert.Equal(t, 1, strings.Count(screen.String(), "got"), screen)
		screen.await(t, "read typed")
		assert.Equal(t, []string{"orders"}, w.left())
	})
	t.Run("ends intercept and leaves a clean line", func(t *testing.T) {
		w := withDaemon(t)
		w.onIntercept(func(ctx context.Context, _ *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "waiting for pods to steer: 1/2, and this text is much too long for the terminal")
		cmd := asProcess(t, w, "intercept", "orders")
		keys, screen := terminal(t, cmd, 40)
		screen.await(t, "waiting for pods")
		_, err := keys.Write([]byte{3})
		require.NoError(t, err)
		assert.Equal(t, 130, exitOf(t, cmd))
		screen.await(t, "\r\x1b[Ksidestep intercept: error: interrupted\r\n")
		assert.NotContains(t, screen.String(), "much too long")
	})
}

func TestADaemonThatDoesNotStartIsAnErrorWithItsLog(t *testing.T) {
	w := newWorld(t)
	blocked := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(blocked, nil, 0o600))
	cmd := asProcess(t, w, "connect")
	cmd.Env = append(cmd.Env, "SIDESTEP_DAEMON_SOCKET="+filepath.Join(blocked, "daemon.sock"),
		"XDG_CACHE_HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	assert.Equal(t, exitError, cmd.ProcessState.ExitCode())
	assert.Contains(t, string(out), "sidestep connect: error: ")
}
