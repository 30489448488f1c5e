// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/client/daemon"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/deploy"
	"sidestep.dev/sidestep/internal/version"
)

// newcomer returns a laptop on which everything but the cluster is real.
func newcomer(t *testing.T, api *clienttest.APIServer) *world {
	w := newWorld(t)
	w.Version = version.Version
	dir := t.TempDir()
	w.vars["KUBECONFIG"] = filepath.Join(dir, "none")
	w.WorkingDir = func() (string, error) { return dir, nil }
	w.Chart, _ = fs.Sub(deploy.Chart, "chart")
	w.Env.Cluster = func(o install.Options) (env.Cluster, error) {
		t.Setenv("KUBECONFIG", w.vars["KUBECONFIG"])
		return install.Reach(o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	launched := false
	w.Launch = func(launching context.Context) error {
		launched = true
		go func() {
			ended <- daemon.Run(ctx, daemon.Options{Socket: w.socket, CacheDir: filepath.Join(dir, "cache"),
				LogFile: filepath.Join(dir, "daemon.log"), Timing: link.Timing{Ready: 5 * time.Second}})
		}()
		for {
			if _, conn, err := w.Dial(launching); err == nil {
				return conn.Close()
			}
			select {
			case <-launching.Done():
				return launching.Err()
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	t.Cleanup(func() {
		cancel()
		if launched {
			<-ended
		}
	})
	return w
}

// installed has a manager, and a Deployment orders.
func installed(t *testing.T, w *world, api *clienttest.APIServer) *clienttest.Manager {
	w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
	api.Add(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop"}})
	return clienttest.NewManager(t, api)
}

// Each error on the way from an empty laptop to the first intercept says what is wrong and what to
// do next.
func TestErrorsOfANewcomer(t *testing.T) {
	authority := func(data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-ca", Namespace: "sidestep"}, Data: data}
	}
	write := func(t *testing.T, w *world, text string) {
		w.vars["KUBECONFIG"] = filepath.Join(t.TempDir(), "config")
		require.NoError(t, os.WriteFile(w.vars["KUBECONFIG"], []byte(text), 0o600))
	}
	var all strings.Builder
	for _, c := range []struct {
		name  string
		set   func(t *testing.T, w *world, api *clienttest.APIServer)
		args  []string
		wants string // the next command, or what else to do
	}{
		{"no kubeconfig", nil, []string{"connect"}, "KUBECONFIG or --kubeconfig"},
		{"no kubeconfig, to install", nil, []string{"helm", "install"}, "--kubeconfig and --context"},
		{"an empty kubeconfig", func(t *testing.T, w *world, _ *clienttest.APIServer) { write(t, w, "") },
			[]string{"connect"}, "KUBECONFIG or --kubeconfig"},
		{"a kubeconfig that is none", func(t *testing.T, w *world, _ *clienttest.APIServer) { write(t, w, "{") },
			[]string{"connect"}, "kubectl config view"},
		{"no current context", func(t *testing.T, w *world, api *clienttest.APIServer) {
			text, err := os.ReadFile(api.Kubeconfig(t, "staging"))
			require.NoError(t, err)
			write(t, w, strings.Replace(string(text), "current-context: staging", "", 1))
		}, []string{"connect"}, "--context"},
		{"a context that is none", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
		}, []string{"connect", "--context", "stagin"}, "kubectl config get-contexts"},
		{"no cluster at the address", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
			api.Stop()
		}, []string{"connect"}, "kubeconfig or VPN"},
		{"old credentials", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
			api.Refuse(http.StatusUnauthorized)
		}, []string{"connect"}, "log in again"},
		{"a namespace that does not exist", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
		}, []string{"connect", "--namespace", "nope"}, "sidestep list-namespaces"},
		{"not installed", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
		}, []string{"connect"}, "sidestep helm install"},
		{"installed elsewhere", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
		}, []string{"intercept", "orders", "--port", "9000"}, "--manager-namespace"},
		{"no rights in the manager's namespace", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
			api.Deny(func(c clienttest.Call) bool { return c.Namespace == "sidestep" })
		}, []string{"connect"}, "for the Role sidestep-user in that namespace"},
		{"half installed", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
			api.Add(t, authority(nil))
		}, []string{"connect"}, "sidestep helm upgrade"},
		{"no pod of the manager is ready", func(t *testing.T, w *world, api *clienttest.APIServer) {
			w.vars["KUBECONFIG"] = api.Kubeconfig(t, "staging")
			clienttest.NewManager(t, api).Kill()
		}, []string{"connect"}, "kubectl get pods --namespace sidestep"},
		{"a manager of another generation", func(t *testing.T, w *world, api *clienttest.APIServer) {
			installed(t, w, api).Protocol = 99
		}, []string{"connect"}, "upgrade this sidestep"},
		{"a manager that is too old", func(t *testing.T, w *world, api *clienttest.APIServer) {
			installed(t, w, api).Protocol = 0
		}, []string{"connect"}, "sidestep helm upgrade"},
		{"no right to create intercepts in the namespace", func(t *testing.T, w *world, api *clienttest.APIServer) {
			installed(t, w, api)
			api.Deny(func(c clienttest.Call) bool { return c.Verb == "create" && c.Resource == "intercepts" })
		}, []string{"intercept", "orders", "--port", "9000"}, "ClusterRole sidestep-user"},
		{"no workload of that name", func(t *testing.T, w *world, api *clienttest.APIServer) { installed(t, w, api) },
			[]string{"intercept", "ordres", "--port", "9000"}, "orders"},
		{"a node without a node agent", func(t *testing.T, w *world, api *clienttest.APIServer) {
			installed(t, w, api).Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
				st := clienttest.Active(i)
				st.State, st.Coverage = v1alpha1.StatePending, "0/1"
				st.Pods[0].Steering, st.Pods[0].Node = false, "node2"
				st.Pods[0].Message = "no node agent on node node2"
				return st
			})
		}, []string{"intercept", "orders", "--port", "9000", "--timeout", "300ms"}, "app.kubernetes.io/component=nodeagent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := clienttest.NewAPIServer(t)
			w := newcomer(t, api)
			if c.set != nil {
				c.set(t, w, api)
			}
			text := w.transcript(c.args...)
			assert.Contains(t, text, "[exit 1]")
			_, advice, ok := strings.Cut(w.stderr.String(), " — ")
			assert.True(t, ok, "it says what to do: %s", text)
			assert.Contains(t, advice, c.wants)
			text = strings.ReplaceAll(strings.ReplaceAll(text, api.URL, "https://SERVER"), w.vars["KUBECONFIG"], "KUBECONFIG")
			all.WriteString("# " + c.name + "\n" + text + "\n")
		})
	}
	golden(t, "errors of a newcomer", all.String())
}
