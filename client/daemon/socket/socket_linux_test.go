// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/client/home"
)

func TestASocketOfAnotherUserIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.sock")
	assert.NoError(t, ownedBy(path, 1000), "there is none")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer listener.Close()
	assert.NoError(t, ownedBy(path, os.Getuid()))
	require.NoError(t, os.Chown(path, 12345, 12345))
	assert.NoError(t, ownedBy(path, 12345))
	assert.NoError(t, ownedBy(path, 0), "root may ask everybody's")
	assert.EqualError(t, ownedBy(path, 1000),
		"the daemon's socket "+path+
			" belongs to user 12345 — run `sidestep quit -s` as 12345, or set SIDESTEP_DAEMON_SOCKET to a path of your own")
}

func TestASocketThatAnotherUsersProcessServesIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.sock")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer listener.Close()
	for _, me := range []int{os.Getuid(), 0} {
		conn, err := dialOwn(t.Context(), path, me)
		require.NoError(t, err)
		_ = conn.Close()
	}
	_, err = dialOwn(t.Context(), path, os.Getuid()+1000)
	assert.ErrorContains(t, err, fmt.Sprintf("is served by a process of user %d", os.Getuid()))
}

func TestTheErrorOfADaemonThatHangsSaysHowToEndIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.sock")
	assert.EqualError(t, Hung(path),
		"the daemon does not answer — end it, and run the command again: the next one goes on with its session")
	require.NoError(t, os.WriteFile(home.Lock(path), []byte("4711\n"), 0o600))
	assert.EqualError(t, Hung(path),
		"the daemon does not answer — end it with `kill -9 4711`, and run the command again: the next one goes on with its session")
}
