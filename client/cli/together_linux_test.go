// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// laptop is a home with the program in it, under a name, and no daemon yet.
func laptop(t *testing.T, name string) func(args ...string) (string, error) {
	t.Helper()
	home, err := os.MkdirTemp("/tmp", "sidestep") // short enough for a socket
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	link := filepath.Join(home, "bin", name)
	require.NoError(t, os.Mkdir(filepath.Dir(link), 0o700))
	require.NoError(t, os.Symlink(self, link))
	w := &world{}
	w.socket = filepath.Join(home, "d.sock")
	run := func(args ...string) (string, error) {
		cmd := asProcess(t, w, args...)
		cmd.Path, cmd.Args[0] = link, link
		cmd.Env = append(cmd.Env, "HOME="+home, "XDG_CACHE_HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() {
		_, _ = run("quit", "-s")
		_ = os.RemoveAll(home)
	})
	return run
}

func TestTerminalsThatStartTheDaemonAtTheSameMomentShareOne(t *testing.T) {
	run := laptop(t, "sidestep")
	const terminals = 6
	failures := make(chan string, terminals)
	for range terminals {
		go func() {
			out, err := run("loglevel", "info", "-d", "0s")
			if err == nil {
				out = ""
			}
			failures <- out
		}()
	}
	for range terminals {
		assert.Empty(t, <-failures)
	}
	first, err := run("status", "--output", "json")
	require.NoError(t, err)
	assert.Contains(t, first, `"running": true`)
	second, err := run("status", "--output", "json")
	require.NoError(t, err)
	assert.Equal(t, first, second, "it is the same process")
	out, err := run("quit", "-s")
	require.NoError(t, err, out)
	out, err = run("status")
	require.NoError(t, err)
	assert.Contains(t, out, "User Daemon: Not running", "there is no other one behind it")
}

func TestTheProgramByItsOtherName(t *testing.T) {
	run := laptop(t, "telepresence")
	out, err := run("loglevel", "info", "-d", "0s")
	require.NoError(t, err, out)
	assert.Contains(t, out, "Launching Telepresence User Daemon")
	out, err = run("intercept", "--nonsense")
	require.Error(t, err)
	assert.True(t, strings.HasPrefix(out, "telepresence intercept: error: "), out)
	assert.Contains(t, out, "`telepresence intercept --help`")
}
