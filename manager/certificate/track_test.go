// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// open returns one end of a connection that the tracker knows, and the other.
func open(t *testing.T, creds credentials.TransportCredentials) (server, client net.Conn) {
	t.Helper()
	client, raw := net.Pipe()
	server, _, err := creds.ServerHandshake(raw)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close(); _ = raw.Close() })
	return server, client
}

func TestConnectionsAreKnownByWhenTheyWereMade(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tracker := NewTracker(func() time.Time { return now })
	creds := tracker.Credentials(insecure.NewCredentials())
	old, _ := open(t, creds)
	broken, client := open(t, creds)
	rotated := now.Add(time.Minute)
	now = rotated
	open(t, creds)
	assert.True(t, tracker.Since(rotated.Add(-time.Hour)))
	assert.False(t, tracker.Since(rotated))
	require.NoError(t, old.Close())
	assert.False(t, tracker.Since(rotated), "another one is left")
	require.NoError(t, client.Close())
	_, err := broken.Read(make([]byte, 1))
	require.Error(t, err)
	assert.True(t, tracker.Since(rotated), "it was never closed, and is gone all the same")
}
