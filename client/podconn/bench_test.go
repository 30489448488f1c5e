// SPDX-License-Identifier: Apache-2.0

package podconn_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/client/podconn"
)

// BenchmarkPingPong sends a kilobyte there and back, with the API server and what is behind it in
// this process.
func BenchmarkPingPong(b *testing.B) {
	s := newAPIServer(b, true, echo(b, false))
	conn, err := podconn.Dial(b.Context(), s.config(), "sidestep", "manager-0", 8443)
	require.NoError(b, err)
	defer conn.Close()
	block := make([]byte, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		_, err := conn.Write(block)
		require.NoError(b, err)
		_, err = io.ReadFull(conn, block)
		require.NoError(b, err)
	}
}
