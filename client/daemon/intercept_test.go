// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/internal/reason"
)

func connected(t *testing.T) *world {
	w := newWorld(t)
	w.start()
	w.connect()
	return w
}

func TestIntercept(t *testing.T) {
	t.Run("traffic reaches the local port until leave", func(t *testing.T) {
		w := connected(t)
		session := w.status().GetSession()
		port := w.echo("hello")
		info := w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: port,
			Mechanism: "http", AutoHeader: true})
		assert.Equal(t, "ACTIVE", info.GetState())
		assert.Equal(t, "Deployment", info.GetWorkloadKind())
		assert.Equal(t, fmt.Sprintf("127.0.0.1:%d", port), info.GetDestination())
		assert.Empty(t, info.GetServicePort(), "its service has one port")
		assert.Len(t, info.GetConditions(), 1)
		assert.Equal(t, []string{"x-telepresence-intercept-id: " + session + ":orders"}, info.GetCurlHeaders())

		object := w.object()
		assert.Equal(t, "orders-"+session[:8], object.Name)
		assert.Equal(t, session, object.Labels["sidestep.dev/session"])
		assert.Equal(t, v1alpha1.Destination{Address: "127.0.0.1", Port: port}, object.Spec.Destination)
		got, err := w.says(object, 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)
		require.Len(t, w.status().GetIntercepts(), 1)

		left, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		assert.Equal(t, "orders", left.GetLeft().GetName())
		assert.Empty(t, w.api.Intercepts())
		assert.Empty(t, w.status().GetIntercepts())
		_, err = w.says(object, 5)
		assert.ErrorContains(t, err, "UNKNOWN")
	})
	t.Run("without a local port the container port is used", func(t *testing.T) {
		w := connected(t)
		assert.Equal(t, "127.0.0.1:8080",
			w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders"}).GetDestination())
	})
	t.Run("two share a local port, and the log says which got a connection", func(t *testing.T) {
		w := connected(t)
		port := w.echo("hello")
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: port})
		_, said, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock", LocalPort: port})
		require.NoError(t, err)
		assert.Contains(t, said, fmt.Sprintf(
			"warning: intercept orders delivers to 127.0.0.1:%d, too: the log at level debug says which got each connection", port))
		objects := w.api.Intercepts()
		require.Len(t, objects, 2)
		for i := range objects {
			got, err := w.says(&objects[i], 5)
			require.NoError(t, err)
			assert.Equal(t, "hello", got)
			w.eventually(func() bool {
				log, err := os.ReadFile(w.options.LogFile)
				return err == nil && regexp.MustCompile(`msg="connection delivered" intercept=shop/`+objects[i].Name+` .*to=127.0.0.1:`+
					strconv.Itoa(int(port))).Match(log)
			}, "the log has the intercept")
		}
	})
	t.Run("the service's port is told when it has several", func(t *testing.T) {
		w := connected(t)
		w.api.Remove(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders"}})
		w.api.Add(t, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders"},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80},
				{Name: "admin", Port: 81}}},
		})
		assert.Equal(t, "admin", w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders",
			LocalPort: 9000, PortIdentifier: "admin"}).GetServicePort())
	})
	t.Run("a silent local port is mentioned and does not hinder", func(t *testing.T) {
		w := connected(t)
		port := w.unusedPort()
		_, said, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", LocalPort: port})
		require.NoError(t, err)
		assert.Contains(t, said, fmt.Sprintf(
			"warning: nothing listens on 127.0.0.1:%d yet: until something does, the pods answer", port))
		conn, opened, err := w.manager.Open(t.Context(), w.object(), false)
		require.NoError(t, err)
		defer conn.Close()
		assert.Equal(t, tunnelpb.Opened_REFUSED, opened.GetResult())
		assert.Equal(t, fmt.Sprintf("nothing listens on 127.0.0.1:%d", port), opened.GetMessage())
		probe, opened, err := w.manager.Open(t.Context(), w.object(), true)
		require.NoError(t, err)
		defer probe.Close()
		assert.Equal(t, tunnelpb.Opened_OK, opened.GetResult(), "a probe needs no process")
	})
	t.Run("no ready pod is success with a note", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(clienttest.State(v1alpha1.StateNoPods, "there is no ready pod at the moment"))
		info := w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders"})
		assert.Equal(t, "NO_PODS", info.GetState())
		assert.Equal(t, "there is no ready pod at the moment", info.GetMessage())
	})
	t.Run("progress says how many pods steer", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			return &v1alpha1.InterceptStatus{State: v1alpha1.StatePending, Coverage: "1/2"}
		})
		events, err := w.daemon.Intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("")})
		require.NoError(t, err)
		for said := ""; said != "waiting for pods to steer: 1/2"; {
			event, err := events.Recv()
			require.NoError(t, err)
			said = event.GetProgress()
		}
		w.manager.Judge(clienttest.Active)
		event, err := events.Recv()
		require.NoError(t, err)
		assert.Equal(t, "ACTIVE", event.GetResult().GetState())
	})
}

func TestInterceptFailuresLeaveNothing(t *testing.T) {
	pending := func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus {
		return &v1alpha1.InterceptStatus{State: v1alpha1.StatePending, Coverage: "1/2",
			Pods: []v1alpha1.PodStatus{
				{Name: "orders-a", Node: "node1", Steering: true},
				{Name: "orders-b", Node: "node2", Message: "the node agent is not connected"},
			}}
	}
	object := func(object client.Object, name, owner, ownerName string) client.Object {
		object.SetNamespace("shop")
		object.SetName(name)
		if owner != "" {
			yes := true
			object.SetOwnerReferences([]metav1.OwnerReference{{Kind: owner, Name: ownerName,
				APIVersion: "apps/v1", UID: "u", Controller: &yes}})
		}
		return object
	}
	cases := []struct {
		name    string
		objects []client.Object
		request *daemonpb.InterceptRequest
		judge   func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus
		deny    func(clienttest.Call) bool
		code    codes.Code
		message string
	}{
		{name: "an unknown workload", request: &daemonpb.InterceptRequest{Name: "ordrs"}, code: codes.NotFound,
			message: `workload "ordrs" not found in namespace shop — did you mean "orders"?`},
		{name: "an unknown namespace",
			request: &daemonpb.InterceptRequest{Name: "orders", Namespace: "shp"}, code: codes.NotFound,
			message: "namespace shp does not exist — choose another with --namespace"},
		{name: "a workload of another kind",
			request: &daemonpb.InterceptRequest{Name: "orders", WorkloadKind: "StatefulSet"},
			code:    codes.NotFound,
			message: `StatefulSet "orders" not found in namespace shop`},
		{name: "a name that workloads of two kinds have",
			objects: []client.Object{object(&appsv1.StatefulSet{}, "orders", "", "")},
			request: &daemonpb.InterceptRequest{Name: "orders"}, code: codes.InvalidArgument,
			message: `"orders" is a Deployment and a StatefulSet in namespace shop — choose with --workload deployment/orders or --workload statefulset/orders`},
		{name: "a pod of a Deployment",
			objects: []client.Object{object(&appsv1.ReplicaSet{}, "orders-1", "Deployment", "orders"),
				object(&corev1.Pod{}, "orders-1-a", "ReplicaSet", "orders-1")},
			request: &daemonpb.InterceptRequest{Name: "orders-1-a"}, code: codes.FailedPrecondition,
			message: "Pod orders-1-a belongs to Deployment orders — run `sidestep intercept orders`"},
		{name: "a pod of a StatefulSet",
			objects: []client.Object{object(&corev1.Pod{}, "db-0", "StatefulSet", "db")},
			request: &daemonpb.InterceptRequest{Name: "db-0", WorkloadKind: "Pod"},
			code:    codes.FailedPrecondition,
			message: "Pod db-0 belongs to StatefulSet db — run `sidestep intercept db`"},
		{name: "a Rollout where there is no such kind",
			request: &daemonpb.InterceptRequest{Name: "echo", WorkloadKind: "Rollout"}, code: codes.NotFound,
			message: `Rollout "echo" not found in namespace shop`},
		{name: "a kind that may not be read",
			request: &daemonpb.InterceptRequest{Name: "log", WorkloadKind: "DaemonSet"},
			code:    codes.PermissionDenied,
			deny:    func(c clienttest.Call) bool { return c.Resource == "daemonsets" },
			message: "dev may not get daemonsets.apps in namespace shop"},
		{name: "a kind that cannot be intercepted",
			request: &daemonpb.InterceptRequest{Name: "orders", WorkloadKind: "Node"},
			code:    codes.InvalidArgument,
			message: "workloads of kind Node cannot be intercepted"},
		{name: "a name that cannot be one", request: &daemonpb.InterceptRequest{Name: "Or_ders"},
			code: codes.InvalidArgument, message: `"Or_ders" cannot be the name`},
		{name: "a bad regular expression",
			request: &daemonpb.InterceptRequest{Name: "orders", Mechanism: "http",
				Http: `{"headers":[{"name":"x","regex":"("}]}`},
			code: codes.InvalidArgument, message: "missing closing )"},
		{name: "conditions on tcp",
			request: &daemonpb.InterceptRequest{Name: "orders", Mechanism: "tcp", AutoHeader: true},
			code:    codes.InvalidArgument,
			message: "mechanism tcp takes every connection"},
		{name: "an address that is none",
			request: &daemonpb.InterceptRequest{Name: "orders", Address: "localhost"},
			code:    codes.InvalidArgument,
			message: "--address localhost is not an IP address"},
		{name: "a conflict names the holder", request: &daemonpb.InterceptRequest{Name: "orders"},
			code:  codes.AlreadyExists,
			judge: clienttest.State(v1alpha1.StateConflict, "held by ann@mac"), message: "held by ann@mac"},
		{name: "an ambiguous port", request: &daemonpb.InterceptRequest{Name: "orders"},
			code:    codes.InvalidArgument,
			judge:   clienttest.State(v1alpha1.StateInvalid, "the service has ports http and admin"),
			message: "the service has ports http and admin"},
		{name: "a pod that cannot be steered", request: &daemonpb.InterceptRequest{Name: "orders"},
			code:    codes.FailedPrecondition,
			judge:   clienttest.State(v1alpha1.StateFailed, "orders-0: kernel too old"),
			message: "orders-0: kernel too old"},
		{name: "pods that are not steering in time",
			request: &daemonpb.InterceptRequest{Name: "orders", TimeoutMs: 300}, code: codes.DeadlineExceeded,
			judge: pending, message: `intercept "orders" is not complete after 300ms: 1/2 pods steer; orders-b on node2: the node agent is not connected`},
		{name: "a manager that does not look at it",
			request: &daemonpb.InterceptRequest{Name: "orders", TimeoutMs: 300}, code: codes.DeadlineExceeded,
			judge:   func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus { return nil },
			message: "the traffic manager has not seen it yet"},
		{name: "no right to create", request: &daemonpb.InterceptRequest{Name: "orders"},
			code:    codes.PermissionDenied,
			deny:    func(c clienttest.Call) bool { return c.Verb == "create" && c.Resource == "intercepts" },
			message: "dev may not create intercepts.sidestep.dev in namespace shop — ask for the ClusterRole sidestep-user"},
		{name: "no right to look for workloads", request: &daemonpb.InterceptRequest{Name: "orders"},
			code:    codes.PermissionDenied,
			deny:    func(c clienttest.Call) bool { return c.Resource == "deployments" },
			message: "dev may not get deployments.apps in namespace shop"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := connected(t)
			w.api.Add(t, c.objects...)
			if c.judge != nil {
				w.manager.Judge(c.judge)
			}
			w.api.Deny(c.deny)
			_, _, err := w.intercept(t.Context(), c.request)
			assert.Equal(t, c.code, status.Code(err), "%v", err)
			assert.Contains(t, status.Convert(err).Message(), c.message)
			assert.Empty(t, w.api.Intercepts())
			assert.Empty(t, w.status().GetIntercepts())
		})
	}
	t.Run("a caller that goes away", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(pending)
		ctx, cancel := context.WithCancel(t.Context())
		events, err := w.daemon.Intercept(ctx, &daemonpb.InterceptRequest{Name: "orders"})
		require.NoError(t, err)
		w.eventually(func() bool { return len(w.api.Intercepts()) == 1 }, "the object is made")
		cancel()
		for err == nil {
			_, err = events.Recv()
		}
		w.eventually(func() bool { return len(w.api.Intercepts()) == 0 }, "the object is deleted again")
	})
}

func TestNamesAndPorts(t *testing.T) {
	w := connected(t)
	first := w.echo("one")
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: first, PortIdentifier: "http"})
	uid := w.object().UID
	fails := func(message string, req *daemonpb.InterceptRequest) {
		t.Helper()
		_, _, err := w.intercept(t.Context(), req)
		assert.Equal(t, codes.AlreadyExists, status.Code(err))
		assert.ErrorContains(t, err, message)
	}
	fails(`intercept "orders" already exists, for Deployment orders in namespace shop`,
		&daemonpb.InterceptRequest{Name: "orders", Workload: "stock", LocalPort: 1})
	fails(`intercept "orders" already exists and takes all TCP connections`,
		&daemonpb.InterceptRequest{Name: "orders", LocalPort: 1, Mechanism: "http"})

	t.Run("a port that does not exist is told before what is in the way", func(t *testing.T) {
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", LocalPort: 1, Mechanism: "http",
			PortIdentifier: "nosuch"})
		assert.Equal(t, codes.InvalidArgument, status.Code(err))
		assert.ErrorContains(t, err, "Deployment orders has no port nosuch; it has: http/80 — choose one of these with --port LOCAL:PORT")
	})
	t.Run("an intercept of one's own that is in the way is one's own to leave", func(t *testing.T) {
		holder := w.object().Spec.Client.Holder
		w.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			if i.Spec.Name == "orders" {
				return nil
			}
			return clienttest.State(v1alpha1.StateConflict,
				fmt.Sprintf("port http of Deployment orders is intercepted by %s (intercept %q)", holder, "orders"))(i)
		})
		defer w.manager.Judge(clienttest.Active)
		fails("port http of Deployment orders is intercepted by your own intercept \"orders\" — run `sidestep leave orders` first",
			&daemonpb.InterceptRequest{Name: "again", Workload: "orders", LocalPort: 1})
	})
	t.Run("the same again is the same", func(t *testing.T) {
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: first, PortIdentifier: "http"})
		assert.Equal(t, uid, w.object().UID)
		assert.EqualValues(t, 1, w.object().Generation)
	})
	t.Run("another service port and local port move it in place", func(t *testing.T) {
		second := w.echo("two")
		info := w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: second,
			PortIdentifier: "admin"})
		assert.Equal(t, fmt.Sprintf("127.0.0.1:%d", second), info.GetDestination())
		object := w.object()
		assert.Equal(t, uid, object.UID)
		assert.Equal(t, "admin", object.Spec.Port)
		got, err := w.says(object, 3)
		require.NoError(t, err)
		assert.Equal(t, "two", got)
	})
	t.Run("a move that fails leaves it where it was", func(t *testing.T) {
		before := w.object().Spec
		w.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			if i.Spec.Port == "nope" {
				return &v1alpha1.InterceptStatus{State: v1alpha1.StateInvalid, Message: "there is no port nope"}
			}
			return clienttest.Active(i)
		})
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: first, PortIdentifier: "nope"})
		assert.ErrorContains(t, err, "there is no port nope")
		assert.Equal(t, before, w.object().Spec)
		w.eventually(func() bool { return w.status().GetIntercepts()[0].GetState() == "ACTIVE" },
			"active again")
	})
	t.Run("leave knows the object's name, and says which names there are", func(t *testing.T) {
		_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "nope"})
		assert.Equal(t, codes.NotFound, status.Code(err))
		assert.ErrorContains(t, err, `there is no intercept "nope" — yours are: orders`)
		_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: w.object().Name})
		require.NoError(t, err)
		_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		assert.ErrorContains(t, err, "you have none")
	})
}

func TestInterceptsThatOthersDelete(t *testing.T) {
	w := connected(t)
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("")})
	w.api.Remove(t, w.object())
	w.eventually(func() bool { return len(w.status().GetIntercepts()) == 0 }, "it is gone from the status")
}

func TestManyConnectionsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.options.Timing = link.Timing{} // a busy machine is not an outage
	w.start()
	w.connect()
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
	object := w.object()
	var wg sync.WaitGroup
	for range 400 {
		wg.Go(func() {
			got, err := w.says(object, 5)
			assert.NoError(t, err)
			assert.Equal(t, "hello", got)
		})
	}
	wg.Wait()
	require.NoError(t, w.manager.Want(object.Spec.Client.KeyHash, 100))
	w.eventually(func() bool { return w.manager.Parked(object.Spec.Client.KeyHash) >= 100 },
		"as many are parked as the manager wants")
}

func TestOutages(t *testing.T) {
	outages := map[string]func(w *world){
		"the manager is killed and comes back": func(w *world) { w.manager.Kill(); w.manager.Start(w) },
		"the port-forward is cut":              func(w *world) { w.api.Cut() },
		"the network swallows everything":      func(w *world) { w.api.Stall() },
		"the API server restarts":              func(w *world) { w.api.Stop(); w.api.Start(w) },
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			w := connected(t)
			w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
			hellos := len(w.manager.Hellos())
			begun := time.Now()
			outage(w)
			w.eventually(func() bool { return len(w.manager.Hellos()) > hellos }, "it connects again")
			got, err := w.says(w.object(), 5)
			require.NoError(t, err)
			assert.Equal(t, "hello", got)
			assert.Less(t, time.Since(begun), 5*time.Second)
			w.eventually(func() bool { return w.status().GetConnected() }, "it says so")
			w.api.Remove(t, w.object())
			w.eventually(func() bool { return len(w.status().GetIntercepts()) == 0 }, "the watch lives again")
		})
	}
	t.Run("meanwhile status says why", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		w.manager.Kill()
		w.eventually(func() bool {
			return w.status().GetMessage() == "the traffic manager in namespace sidestep is not ready: it has no pod"
		}, "the reason")
		info := w.status()
		assert.Equal(t, "Reconnecting", info.GetState())
		assert.False(t, info.GetConnected())
		assert.Equal(t, "DISCONNECTED", info.GetIntercepts()[0].GetState())
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock", TimeoutMs: 100})
		assert.Equal(t, codes.Unavailable, status.Code(err))
		assert.ErrorContains(t, err, "not connected to the traffic manager")
	})
	t.Run("disconnecting without a cluster says what is left", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		w.api.Stop()
		_, err := w.daemon.Disconnect(t.Context(), &daemonpb.Empty{})
		assert.Equal(t, reason.InterceptsLeft, reason.Of(err))
		assert.Empty(t, w.status().GetSession())
		assert.NoFileExists(t, filepath.Join(w.options.CacheDir, "session.json"))
	})
}
