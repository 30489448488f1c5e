// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// testEnvironment imports the environment of a container whose image has no shell, so that nothing
// else could read it.
func testEnvironment(t *testing.T, s *scene) {
	pods, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "pods", "-l", "app=orders", "-o", "name")
	require.NoError(t, err)
	args := func(more ...string) []string {
		return append([]string{"intercept", "orders", "-n", lab.Namespace, "--workload", "orders",
			"--port", "9000"}, more...)
	}
	t.Run("in files", func(t *testing.T) {
		file, object := filepath.Join(s.ann.Home(), "orders.env"), filepath.Join(s.ann.Home(), "orders.json")
		sidestep(t, s.ann, args("--env-file", file, "--env-syntax", "sh:export", "--env-json", object)...)
		defer sidestep(t, s.ann, "leave", "orders")
		for _, name := range []string{file, object} {
			info, err := os.Stat(name)
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
		}
		text, err := os.ReadFile(object)
		require.NoError(t, err)
		env := map[string]string{}
		require.NoError(t, json.Unmarshal(text, &env))
		assert.Contains(t, pods, "pod/"+env["POD_NAME"]+"\n", "what the kubelet has filled in")
		assert.NotEmpty(t, env["KUBERNETES_SERVICE_HOST"], "what the kubelet adds")
		assert.Equal(t, "orders", env["TELEPRESENCE_CONTAINER"])
		assert.Regexp(t, `^[0-9a-f-]{36}:orders$`, env["TELEPRESENCE_INTERCEPT_ID"])
		assert.NotContains(t, env, "HOSTNAME")
		read, err := lab.Output(s.ann.Command(t.Context(), "sh", "-c", `. "$0" && env`, file))
		require.NoError(t, err)
		for name, value := range env {
			assert.Contains(t, read, name+"="+value+"\n")
		}
	})
	t.Run("for a command", func(t *testing.T) {
		out := sidestep(t, s.ann,
			args("--", "sh", "-c", `echo "pod $POD_NAME of $TELEPRESENCE_CONTAINER, $HOME"`)...)
		assert.Regexp(t, `(?m)^pod orders-\S+ of orders, `+s.ann.Home()+`$`, out)
	})
	t.Run("not for those who may not read it", func(t *testing.T) { testEnvironmentDenied(t, s, args) })
}

func testEnvironmentDenied(t *testing.T, s *scene, args func(...string) []string) {
	if !s.Local() {
		t.Skip("on a cluster that was given all developers have the same rights")
	}
	kubectl := func(args ...string) {
		t.Helper()
		_, err := s.Kubectl(t.Context(), args...)
		require.NoError(t, err)
	}
	for _, binding := range [][]string{
		{"-n", "sidestep", "create", "rolebinding", "e2e-environment", "--role=sidestep-user",
			"--group=strangers"},
		{"-n", lab.Namespace, "create", "role", "e2e-environment", "--verb=*",
			"--resource=intercepts.sidestep.dev", "--resource=intercepts.sidestep.dev/wholeport"},
		{"-n", lab.Namespace, "create", "rolebinding", "e2e-environment", "--role=e2e-environment",
			"--group=strangers"},
		{"-n", lab.Namespace, "create", "rolebinding", "e2e-environment-view", "--clusterrole=view",
			"--group=strangers"},
	} {
		kubectl(binding...)
	}
	t.Cleanup(func() {
		_, _ = s.Kubectl(context.Background(), "-n", "sidestep", "delete", "rolebinding", "e2e-environment")
		_, _ = s.Kubectl(context.Background(), "-n", lab.Namespace, "delete", "rolebinding,role",
			"e2e-environment", "e2e-environment-view", "e2e-environment-may", "--ignore-not-found")
	})
	stranger, err := s.Stranger(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = stranger.Sidestep(context.Background(), "quit", "-s") })
	file := filepath.Join(stranger.Home(), "orders.env")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = stranger.Sidestep(ctx, args("--env-file", file)...)
	require.ErrorContains(t, err,
		"stranger may not get intercepts/environment.sidestep.dev in namespace shop — ")
	assert.ErrorContains(t, err, "ClusterRole sidestep-environment")
	assert.NoFileExists(t, file)
	left, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "--no-headers", "--ignore-not-found")
	require.NoError(t, err)
	assert.Empty(t, strings.TrimSpace(left))

	cmd := stranger.Command(ctx,
		append([]string{"sidestep"}, args("--", "sh", "-c", `echo "pod ${POD_NAME-unknown}"`)...)...)
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	require.NoError(t, err, says.String())
	assert.Contains(t, string(out), "pod unknown\n", "a command runs all the same")
	assert.Contains(t, says.String(),
		"warning: the environment of the container is not there: stranger may not get ")

	kubectl("-n", lab.Namespace, "create", "rolebinding", "e2e-environment-may",
		"--clusterrole=sidestep-environment", "--group=strangers")
	require.NoError(t, lab.Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := stranger.Sidestep(ctx, args("--env-file", file)...)
		return err
	}))
	assert.FileExists(t, file)
	sidestep(t, stranger, "leave", "orders")
}
