// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// connectedBy is the last word of a developer's daemon on how it has connected.
func connectedBy(t *testing.T, d *lab.Developer) (last string) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(d.Home(), ".cache", "sidestep", "logs", "daemon.log"))
	require.NoError(t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "connected to the traffic manager") {
			last = line
		}
	}
	return last
}

// testWays removes the right to the quicker way to the manager from developers, which leaves them
// the port-forward.
func testWays(t *testing.T, s *scene) {
	if s.Local() { // whose API server reaches pods
		assert.Contains(t, connectedBy(t, s.ann), `by="upgraded request"`)
	}
	sidestep(t, s.bob, "quit")
	proxy := func(before, after string) {
		_, err := s.Kubectl(context.WithoutCancel(t.Context()), "-n", "sidestep", "patch", "role",
			"sidestep-user", "--type=json",
			"-p", `[{"op":"test","path":"/rules/5/resources/0","value":"`+before+
				`"},{"op":"replace","path":"/rules/5/resources/0","value":"`+after+`"}]`)
		require.NoError(t, err)
	}
	proxy("pods/proxy", "pods/none")
	t.Cleanup(func() {
		proxy("pods/none", "pods/proxy")
		for _, args := range [][]string{{"quit"}, {"connect", "-n", lab.Namespace}} {
			_, err := s.bob.Sidestep(context.Background(), args...)
			assert.NoError(t, err)
		}
	})
	sidestep(t, s.bob, "connect", "-n", lab.Namespace)
	by := connectedBy(t, s.bob)
	assert.Contains(t, by, `by="port-forward (`)
	assert.Contains(t, by, "cannot get resource", "why not by the quicker way")
	serve(t, s.bob, "serve", "127.0.0.1:9100")
	intercept(t, s.bob, "orders", "--port", "9100", "--http-header", "x-user=bob")
	answer, err := s.Call(t.Context(), "http://orders", "x-user: bob")
	require.NoError(t, err)
	assert.Equal(t, "laptop", answer.Service)
}
