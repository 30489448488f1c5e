// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
)

// run calls the command line on a state directory and returns the code and what was printed.
func run(t *testing.T, state string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "stdout"))
	require.NoError(t, err)
	defer out.Close()
	complaint, err := os.Create(filepath.Join(dir, "stderr"))
	require.NoError(t, err)
	defer complaint.Close()
	environment := map[string]string{"SIDESTEP_CLUSTER_STATE": state,
		"SIDESTEP_CLUSTER_CACHE": filepath.Join(dir, "cache")}
	code = Main(args, Env{
		Stdin: os.Stdin, Stdout: out, Stderr: complaint,
		Getenv: func(name string) string { return environment[name] },
	})
	read := func(file *os.File) string {
		text, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		return string(bytes.TrimSpace(text))
	}
	return code, read(out), read(complaint)
}

// planned returns a state directory like that of a running cluster.
func planned(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	text := `{"name":"sidestep","nodes":2,"family":"ipv4","hostLink":true}`
	require.NoError(t, os.WriteFile(filepath.Join(state, "plan.json"), []byte(text), 0o600))
	return state
}

func TestWrongUseIsExplained(t *testing.T) {
	for name, test := range map[string]struct {
		up   bool
		args []string
		says string
	}{
		"status without a cluster": {false, []string{"status"}, `bring one up with "cluster up"`},
		"exec without a cluster": {false, []string{"exec", "node1", "--", "true"},
			"no cluster is up"},
		"kubeconfig without a cluster": {false, []string{"kubeconfig"}, "no cluster is up"},
		"load-image without an image":  {true, []string{"load-image"}, "requires at least 1 arg"},
		"exec on a machine that is not there": {true, []string{"exec", "node9", "--", "true"},
			"there are control-plane, node1, node2, laptop"},
		"exec on a machine that is not up": {true, []string{"exec", "node1", "--", "true"},
			"machine node1 is not running"},
		"exec without a command": {true, []string{"exec", "node1"}, "requires at least 2 arg"},
		"a group without a user": {true, []string{"kubeconfig", "--group", "developers"},
			"--group needs --user"},
		"a family that there is not": {false, []string{"up", "--ip-family", "ipx"},
			"choose ipv4 or dual"},
		"a command that there is not": {false, []string{"pause"}, `unknown command "pause"`},
		"a number of nodes that cannot be had": {false, []string{"up", "--nodes", "0"},
			"choose a number from 1"},
	} {
		t.Run(name, func(t *testing.T) {
			state := filepath.Join(t.TempDir(), "none")
			if test.up {
				state = planned(t)
			}
			code, _, stderr := run(t, state, test.args...)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, test.says)
		})
	}
}

func TestDownWithoutAClusterIsNoFailure(t *testing.T) {
	state := filepath.Join(t.TempDir(), "none")
	code, stdout, _ := run(t, state, "down")
	assert.Zero(t, code)
	assert.Contains(t, stdout, "no cluster is up")
	assert.NoDirExists(t, state)
}

func TestAKubeconfigIsMadeForAnyUser(t *testing.T) {
	state := planned(t)
	code, stdout, stderr := run(t, state, "kubeconfig", "--user", "alice", "--group", "developers",
		"--group", "testers")
	require.Zero(t, code, stderr)
	config, err := clientcmd.Load([]byte(stdout))
	require.NoError(t, err)
	assert.Contains(t, config.AuthInfos, "alice")
	assert.Equal(t, "https://198.18.0.1:6443", config.Clusters["sidestep"].Server)

	code, stdout, _ = run(t, state, "kubeconfig", "--path")
	assert.Zero(t, code)
	assert.Equal(t, filepath.Join(state, "admin.kubeconfig"), stdout)
}
