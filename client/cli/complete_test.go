// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCompletion(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`
apiVersion: v1
kind: Config
current-context: staging
contexts:
- {name: staging, context: {cluster: one, user: jane, namespace: shop}}
- {name: production, context: {cluster: two, user: root}}
clusters:
- {name: one, cluster: {server: "https://10.0.0.1:6443"}}
- {name: two, cluster: {server: "https://10.0.0.2:6443"}}
users:
- {name: jane, user: {}}
- {name: root, user: {}}
`), 0o600))
	t.Setenv("KUBECONFIG", kubeconfig)
	connected := func(w *world) {
		w.daemon.status = statusOf(anIntercept(), aTroubledIntercept())
		w.daemon.workloads = someWorkloads()
		w.connected(true)
	}
	apart := func(*world) {}
	for _, c := range []struct {
		name string
		set  func(*world)
		args []string
		want string
	}{
		{"workloads of the session", connected, []string{"intercept", ""},
			"frontend\nlegacy\norders\nstock\n:4\n"},
		{"workloads of the cluster without a session", apart, []string{"intercept", ""},
			"orders-in-shop\nstock-in-shop\n:4\n"},
		{"workloads of another context", connected,
			[]string{"intercept", "--context", "production", ""}, "orders-in-default\nstock-in-default\n:4\n"},
		{"workloads of a namespace", apart, []string{"intercept", "-n", "tools", ""},
			"orders-in-tools\nstock-in-tools\n:4\n"},
		{"nothing when the cluster is away", func(w *world) { w.cluster.err = errors.New("away") },
			[]string{"intercept", ""}, "_activeHelp_ away\n:4\n"},
		{"why there is nothing to intercept", func(w *world) { w.connected(true) }, []string{"intercept", ""},
			"_activeHelp_ nothing in namespace default can be intercepted: name another with --namespace\n:4\n"},
		{"workloads to be wiretapped", connected, []string{"wiretap", "o"}, "orders\n:4\n"},
		{"flags of a wiretap", apart, []string{"wiretap", "x", "--mechanism", ""}, "tcp\nhttp\n:4\n"},
		{"a workload for --workload", connected, []string{"intercept", "x", "--workload", "o"}, "orders\n:4\n"},
		{"intercepts", connected, []string{"leave", ""}, "echo\norders-shop\n:4\n"},
		{"intercepts by their other verb", connected, []string{"detach", "o"}, "orders-shop\n:4\n"},
		{"no intercepts without a daemon", apart, []string{"leave", ""},
			"_activeHelp_ nothing is intercepted: there is no session\n:4\n"},
		{"headers", apart, []string{"intercept", "x", "--http-header", ""}, "auto\nall\n:4\n"},
		{"mechanisms", apart, []string{"intercept", "x", "--mechanism", ""}, "tcp\nhttp\n:4\n"},
		{"formats", apart, []string{"list", "--output", ""}, "default\njson\nyaml\njson-stream\n:4\n"},
		{"contexts", apart, []string{"connect", "--context", ""}, "production\nstaging\n:4\n"},
		{"services of the workload", apart, []string{"intercept", "echo", "--service", "echo-s"},
			"echo-stable\n:4\n"},
		{"containers of the workload", apart,
			[]string{"intercept", "x", "-w", "deploy/echo", "--container", ""}, "app\nproxy\n:4\n"},
		{"a local port is the user's own business", apart,
			[]string{"intercept", "echo", "--port", "90"}, ":6\n"},
		{"ports of the workload's services", apart, []string{"intercept", "echo", "--port", "9000:"},
			"9000:8081\n9000:http\n:4\n"},
		{"ports of the service", connected,
			[]string{"intercept", "echo", "--service", "echo-canary", "--port", "9000:"}, "9000:http\n:4\n"},
		{"ports beside a container's", apart,
			[]string{"intercept", "echo", "--docker-run", "--port", "9000:8080:h"}, "9000:8080:http\n:4\n"},
		{"no ports of no workload", apart, []string{"intercept", "--port", "9000:"}, ":4\n"},
		{"log levels", apart, []string{"loglevel", ""}, "error\nwarning\ninfo\ndebug\n:4\n"},
		{"namespaces", apart, []string{"list", "-n", ""}, "default\nshop\n:4\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.set(w)
			assert.Zero(t, w.do(append([]string{"__complete"}, c.args...)...))
			assert.Equal(t, c.want, w.stdout.String())
			assert.Zero(t, w.launches)
		})
	}
}

func TestCompletionShowsNoBackquotes(t *testing.T) {
	w := newWorld(t)
	assert.Zero(t, w.do("__complete", "intercept", "orders", "--"))
	assert.Contains(t, w.stdout.String(), "--port\tLocal port, as LOCAL[:ID]")
	assert.NotContains(t, w.stdout.String(), "`")
}
