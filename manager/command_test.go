// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func run(args ...string) (int, string) {
	var stderr bytes.Buffer
	code := Main(Env{Args: args, Stderr: &stderr, Getenv: func(string) string { return "" }})
	return code, stderr.String()
}

func TestWrongUseIsExplained(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		says string
	}{
		{"an unknown flag", []string{"--nonsense"}, "unknown flag: --nonsense"},
		{"an argument", []string{"now"}, `unknown command "now"`},
		{"an unknown level", []string{"--log-level=loud"}, "loud"},
		{"no grace", []string{"--session-grace=0s"}, "--session-grace must be more than zero, such as 15m"},
		{"no cluster", nil, "outside of a cluster use --kubeconfig"},
		{"a kubeconfig that is not there", []string{"--kubeconfig=/nonexistent"}, "/nonexistent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stderr := run(tc.args...)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, "sidestep-manager: error: ")
			assert.Contains(t, stderr, tc.says)
		})
	}
}

func TestFlagsHaveTheirDefaults(t *testing.T) {
	cmd := NewCommand(Env{Getenv: func(string) string { return "tools" }})
	for name, want := range map[string]string{
		"grpc-address": ":8443", "http-address": ":8080", "connect-address": ":8444", "tls-dir": "/etc/sidestep/tls",
		"namespace": "tools", "session-grace": (15 * time.Minute).String(),
		"agent-service-account": "sidestep-nodeagent", "token-audience": "sidestep-manager",
		"log-level": slog.LevelInfo.String(), "kubeconfig": "",
	} {
		flag := cmd.Flags().Lookup(name)
		require.NotNil(t, flag, name)
		assert.Equal(t, want, flag.DefValue, name)
	}
}
