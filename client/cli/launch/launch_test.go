// SPDX-License-Identifier: Apache-2.0

//go:build unix

package launch

import (
	"context"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain lets this program play the daemon, as the last argument says.
func TestMain(m *testing.M) {
	switch args := os.Args; {
	case len(args) == 3 && args[1] == "serve":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		_, err := net.Listen("unix", args[2])
		if err != nil {
			panic(err)
		}
		_ = os.WriteFile(args[2]+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600)
		<-stop
	case len(args) == 2 && args[1] == "crash":
		println("one line of the log")
		panic("the daemon is no more")
	case len(args) == 2 && args[1] == "hang":
		println("waiting for something")
		time.Sleep(3 * time.Second)
	default:
		os.Exit(m.Run())
	}
}

func daemonOf(t *testing.T, args ...string) Daemon {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	return Daemon{Executable: self, Args: args, LogFile: filepath.Join(dir, "logs", "daemon.log"),
		Listening: func(context.Context) bool { return false }}
}

func TestTheDaemonListensWhenStartReturnsAndHasASessionOfItsOwn(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	d := daemonOf(t, "serve", socket)
	d.Listening = func(context.Context) bool {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		_ = conn.Close()
		_, err = os.Stat(socket + ".pid")
		return err == nil
	}
	require.NoError(t, d.Start(t.Context()))
	text, err := os.ReadFile(socket + ".pid")
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(text))
	require.NoError(t, err)
	defer func() { _ = syscall.Kill(pid, syscall.SIGTERM) }()
	session, err := unix.Getsid(pid)
	require.NoError(t, err)
	assert.Equal(t, pid, session, "a signal to the terminal's processes does not reach it")
	info, err := os.Stat(d.LogFile)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestTheErrorHasTheEndOfTheLogOfThisStart(t *testing.T) {
	d := daemonOf(t, "crash")
	require.NoError(t, os.MkdirAll(filepath.Dir(d.LogFile), 0o700))
	require.NoError(t, os.WriteFile(d.LogFile, []byte("of another day\n"), 0o600))
	err := d.Start(t.Context())
	require.Error(t, err)
	assert.Contains(t, err.Error(), "exit status 2 — its log is "+d.LogFile)
	assert.Contains(t, err.Error(), "\n    one line of the log\n    panic: the daemon is no more\n")
	assert.NotContains(t, err.Error(), "of another day")
	assert.LessOrEqual(t, strings.Count(err.Error(), "\n"), logLines)
}

func TestADaemonThatDoesNotListenInTimeIsAnError(t *testing.T) {
	d := daemonOf(t, "hang")
	d.Patience = 300 * time.Millisecond
	err := d.Start(t.Context())
	require.ErrorContains(t, err, "its socket did not answer within 300ms")
}

func TestADaemonThatAnotherCommandStartedIsAsGood(t *testing.T) {
	d := daemonOf(t, "crash")
	asked := 0
	d.Listening = func(context.Context) bool { asked++; return asked > 1 }
	assert.NoError(t, d.Start(t.Context()))
}

func TestCommandsThatStartTheDaemonAtOnceStartOneProcess(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	d := daemonOf(t, "serve", socket)
	d.Listening = func(context.Context) bool {
		_, err := os.Stat(socket + ".pid")
		return err == nil
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { assert.NoError(t, d.Start(t.Context())) })
	}
	all.Wait()
	text, err := os.ReadFile(socket + ".pid")
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(text))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	log, err := os.ReadFile(d.LogFile)
	require.NoError(t, err)
	assert.Empty(t, string(log), "a second process would have found the address in use")
	release, taken := takeTurn(d.LogFile)
	require.True(t, taken, "the daemon does not keep the others from starting one")
	release()
}

func TestAProgramThatDoesNotExistIsAnError(t *testing.T) {
	d := daemonOf(t)
	d.Executable = "/no/such/program"
	assert.ErrorContains(t, d.Start(t.Context()), "start the daemon: ")
}

func TestCtrlCEndsTheWait(t *testing.T) {
	d := daemonOf(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	d.Listening = func(context.Context) bool { cancel(); return false }
	assert.ErrorIs(t, d.Start(ctx), context.Canceled)
}

func TestAHomeThatCannotBeWrittenHasItsLogAmongTheTemporaryFiles(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	blocked := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(blocked, nil, 0o600))
	d := daemonOf(t, "crash")
	d.LogFile = filepath.Join(blocked, "logs", "daemon.log")
	err := d.Start(t.Context())
	require.ErrorContains(t, err, "one line of the log")
	assert.ErrorContains(t, err, "its log is "+temp)
}
