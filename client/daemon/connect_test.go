// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

func TestConnect(t *testing.T) {
	t.Run("a session says where it is and to which manager it speaks", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		assert.Equal(t, "Not connected", w.status().GetState())
		info := w.connect()
		assert.Equal(t, "Connected", info.GetState())
		assert.Equal(t, w.api.URL, info.GetKubernetesServer())
		assert.Equal(t, "test", info.GetKubernetesContext())
		assert.Equal(t, "shop", info.GetNamespace())
		assert.Equal(t, "sidestep", info.GetManagerNamespace())
		assert.Equal(t, "v9", info.GetManagerVersion())
		assert.Len(t, info.GetSession(), 36)
		hellos := w.manager.Hellos()
		require.NotEmpty(t, hellos)
		assert.Equal(t, info.GetSession(), hellos[0].GetSession())
		assert.Equal(t, info.GetHolder(), hellos[0].GetHolder())
		assert.Regexp(t, `^.+@.+$`, info.GetHolder())
	})
	t.Run("the manager's word about node agents is passed on", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		_, err := w.daemon.NodeAgents(t.Context(), &daemonpb.Empty{})
		assert.Equal(t, codes.FailedPrecondition, status.Code(err), "not connected")
		w.connect()
		reply, err := w.daemon.NodeAgents(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		require.Len(t, reply.GetAgents(), 2)
		first := reply.GetAgents()[0]
		assert.Equal(t, []string{"node1", "v9", "6.12.48", "sk_lookup", "the kernel has it"},
			[]string{first.GetNode(), first.GetVersion(), first.GetKernel(), first.GetDatapath(),
				first.GetReason()})
		assert.True(t, first.GetAttached())
		assert.False(t, reply.GetAgents()[1].GetAttached())
		w.manager.Kill()
		require.Eventually(t, func() bool { return !w.status().GetConnected() }, 10*time.Second,
			10*time.Millisecond)
		reply, err = w.daemon.NodeAgents(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		assert.Empty(t, reply.GetAgents())
	})
	t.Run("what was counted is told of intercepts that there are", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.connect()
		info := w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", Workload: "orders",
			LocalPort: w.unusedPort(), Mechanism: "tcp"})
		w.manager.Count("somebody else's", &agentpb.Traffic{Opened: 1})
		w.manager.Count(string(w.object().UID), &agentpb.Traffic{Opened: 12, Closed: 5})
		reply, err := w.daemon.NodeAgents(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		require.Len(t, reply.GetTraffic(), 1)
		assert.Equal(t, info.GetId(), reply.GetTraffic()[0].GetInterceptId())
		assert.EqualValues(t, 12, reply.GetTraffic()[0].GetTraffic().GetOpened())
	})
	t.Run("connecting again is the same session, and its namespace follows what is asked", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		first := w.connect()
		request := w.connectRequest()
		request.Namespace = "other"
		second, err := w.daemon.Connect(t.Context(), request)
		require.NoError(t, err)
		assert.Equal(t, first.GetSession(), second.GetSession())
		assert.Equal(t, "other", second.GetNamespace())
		assert.Equal(t, "other", w.connect().GetNamespace(), "what was chosen stays")
	})
	t.Run("relative paths are the caller's", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		info, err := w.daemon.Connect(t.Context(), &daemonpb.ConnectRequest{
			KubeFlags:  map[string]string{"kubeconfig": filepath.Base(w.kubeconfig)},
			WorkingDir: filepath.Dir(w.kubeconfig), KubeconfigEnv: "/nowhere",
		})
		require.NoError(t, err)
		assert.True(t, info.GetConnected())
	})
	t.Run("another cluster is refused while there is a session, and taken after disconnecting",
		func(t *testing.T) {
			w := newWorld(t)
			w.start()
			w.connect()
			other := w.api.Kubeconfig(t, "other")
			_, err := w.daemon.Connect(t.Context(), &daemonpb.ConnectRequest{KubeconfigEnv: other})
			assert.Equal(t, reason.OtherCluster, reason.Of(err))
			assert.Equal(t, codes.FailedPrecondition, status.Code(err))
			assert.ErrorContains(t, err, "already connected to context test")
			_, err = w.daemon.Disconnect(t.Context(), &daemonpb.Empty{})
			require.NoError(t, err)
			info, err := w.daemon.Connect(t.Context(), &daemonpb.ConnectRequest{KubeconfigEnv: other})
			require.NoError(t, err)
			assert.Equal(t, "other", info.GetKubernetesContext())
		})
	t.Run("a newer manager may say what this client cannot know", func(t *testing.T) {
		w := newWorld(t)
		w.manager.Newer = true
		w.start()
		assert.True(t, w.connect().GetConnected())
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		got, err := w.says(w.object(), 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)
	})
	t.Run("a manager that is just getting ready is waited for", func(t *testing.T) {
		w := newWorld(t)
		w.manager.Kill()
		w.start()
		connected := make(chan error)
		go func() {
			_, err := w.daemon.Connect(t.Context(), w.connectRequest())
			connected <- err
		}()
		w.eventually(func() bool { return len(w.api.Calls()) > 4 }, "the manager is looked for")
		w.manager.Start(t)
		assert.NoError(t, <-connected)
	})
}

func TestConnectFailures(t *testing.T) {
	cases := []struct {
		name    string
		world   func(*world)
		request func(*world) *daemonpb.ConnectRequest
		reason  string
		message string
	}{
		{
			name: "sidestep is not installed",
			world: func(w *world) {
				w.manager.Kill()
				w.api.Remove(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep",
					Name: "sidestep-ca"}})
			},
			reason:  reason.ManagerNotInstalled,
			message: "the traffic manager is not installed in namespace sidestep — run `sidestep helm install`",
		}, {
			name:   "the API server is not reachable",
			world:  func(w *world) { w.api.Stop() },
			reason: reason.NoCluster, message: "connection refused — check your kubeconfig or VPN",
		}, {
			name:   "the API server does not accept the credentials",
			world:  func(w *world) { w.api.Refuse(http.StatusUnauthorized) },
			reason: reason.Unauthorized, message: `does not accept the credentials of context "test"`,
		}, {
			name: "the right to read the manager's certificate is missing",
			world: func(w *world) {
				w.api.Deny(
					func(c clienttest.Call) bool { return c.Resource == "configmaps" })
			},
			reason:  reason.Forbidden,
			message: "either it is not installed there, or you lack the rights — ask who runs the cluster to install it, or for the Role sidestep-user in that namespace (dev may not get configmaps in namespace sidestep)",
		}, {
			name: "the right to forward ports is missing",
			world: func(w *world) {
				w.api.Deny(func(c clienttest.Call) bool { return c.Resource == "pods" && c.Name != "" })
			},
			reason: reason.Forbidden, message: "dev may not create pods/portforward in namespace sidestep",
		}, {
			name:    "the manager speaks a newer protocol",
			world:   func(w *world) { w.manager.Protocol = 2 },
			reason:  reason.VersionSkew,
			message: "speaks protocol 2 and this sidestep (v0.0.0-dev) protocol 1 — upgrade this sidestep",
		}, {
			name: "a manager that refuses this client's protocol",
			world: func(w *world) {
				refusal, err := status.New(codes.FailedPrecondition,
					"the traffic manager (v9) speaks protocol 2 and the client (v1) protocol 1: install the same version of both").
					WithDetails(&errdetails.ErrorInfo{Reason: "VERSION_SKEW", Domain: "sidestep.dev"})
				require.NoError(w, err)
				w.manager.Refuses = refusal.Err()
			},
			reason:  reason.VersionSkew,
			message: "the traffic manager (v9) speaks protocol 2 and the client (v1) protocol 1: install the same version of both",
		}, {
			name: "a manager that refuses this client for a reason that it has no name for",
			world: func(w *world) {
				w.manager.Refuses = status.Error(codes.FailedPrecondition,
					"this manager (v9) speaks protocol 2 and the client (v1) 1: install the same version of both")
			},
			reason: "", message: "the traffic manager refused: this manager (v9) speaks protocol 2",
		}, {
			name: "the context does not exist",
			request: func(w *world) *daemonpb.ConnectRequest {
				return &daemonpb.ConnectRequest{KubeconfigEnv: w.kubeconfig,
					KubeFlags: map[string]string{"context": "nope"}}
			},
			reason: reason.NoCluster, message: `the kubeconfig has no context "nope"`,
		}, {
			name: "there is no kubeconfig",
			request: func(w *world) *daemonpb.ConnectRequest {
				return &daemonpb.ConnectRequest{KubeconfigEnv: filepath.Join(w.TempDir(), "none")}
			},
			reason: reason.NoCluster, message: "no Kubernetes cluster is configured",
		}, {
			name: "a flag has a bad value",
			request: func(w *world) *daemonpb.ConnectRequest {
				return &daemonpb.ConnectRequest{KubeFlags: map[string]string{"insecure-skip-tls-verify": "perhaps"}}
			},
			reason: reason.NoCluster, message: "--insecure-skip-tls-verify perhaps",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.world != nil {
				c.world(w)
			}
			w.start()
			request := w.connectRequest()
			if c.request != nil {
				request = c.request(w)
			}
			_, err := w.daemon.Connect(t.Context(), request)
			require.Error(t, err)
			assert.Equal(t, c.reason, reason.Of(err), "%v", err)
			assert.Contains(t, status.Convert(err).Message(), c.message)
			assert.Empty(t, w.status().GetSession())
			assert.NoFileExists(t, filepath.Join(w.options.CacheDir, "session.json"))
			_, err = w.daemon.List(t.Context(), &daemonpb.ListRequest{})
			assert.Equal(t, reason.NoSession, reason.Of(err))
		})
	}
}

func TestHomeThatCannotBeWritten(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	w.options.CacheDir = filepath.Join(file, "cache")
	w.start()
	info := w.connect()
	assert.Contains(t, info.GetMessage(), "the session is not saved and ends with the daemon")
	_, said, err := w.intercept(t.Context(),
		&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hi")})
	require.NoError(t, err)
	assert.Contains(t, said[len(said)-1], "warning: the session is not saved")
	got, err := w.says(w.object(), 2)
	require.NoError(t, err)
	assert.Equal(t, "hi", got)
}
