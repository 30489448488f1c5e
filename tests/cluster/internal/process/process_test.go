// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func start(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	command := exec.Command("sleep", "1000")
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	identity, err := Identify(command.Process.Pid)
	require.NoError(t, err)
	return command, identity
}

func TestARecordOutlivesTheToolButNotTheProcess(t *testing.T) {
	command, identity := start(t)
	path := filepath.Join(t.TempDir(), "sleep.json")
	require.NoError(t, Save(path, identity))
	loaded, err := Load(path)
	require.NoError(t, err)
	assert.Equal(t, identity, loaded)
	assert.True(t, loaded.Alive())

	require.NoError(t, loaded.Kill(t.Context()))
	assert.False(t, loaded.Alive(), "a zombie is dead")
	command.Wait()
	assert.False(t, loaded.Alive())
	assert.NoError(t, loaded.Kill(t.Context()), "again")
}

func TestAnotherProcessWithTheSameIDIsNotMeant(t *testing.T) {
	_, identity := start(t)
	for name, other := range map[string]Process{
		"one that started at another time": {identity.PID, identity.Start + 1, identity.Boot},
		"one of an earlier boot":           {identity.PID, identity.Start, "another"},
		"none":                             {},
	} {
		t.Run(name, func(t *testing.T) {
			assert.False(t, other.Alive())
			assert.NoError(t, other.Kill(t.Context()))
		})
	}
	assert.True(t, identity.Alive(), "and it was left alone")
}

func TestAMissingOrDamagedRecordIsOfNoProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	for range 2 {
		loaded, err := Load(path)
		require.NoError(t, err)
		assert.False(t, loaded.Alive())
		require.NoError(t, os.WriteFile(path, []byte("{half"), 0o600))
	}
}

func TestProcessesAreFoundByTheirNetworkNamespace(t *testing.T) {
	_, identity := start(t)
	var own unix.Stat_t
	require.NoError(t, unix.Stat("/proc/self/ns/net", &own))
	assert.Contains(t, InNetns(map[uint64]bool{own.Ino: true}), identity)
	assert.Empty(t, InNetns(map[uint64]bool{1: true}))
}
