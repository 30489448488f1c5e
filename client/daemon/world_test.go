// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/client/daemon"
	"sidestep.dev/sidestep/client/daemon/socket"
	"sidestep.dev/sidestep/client/link"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second

// quick makes outages short.
var quick = link.Timing{Ping: 50 * time.Millisecond, GiveUp: time.Second, First: 5 * time.Millisecond,
	Early: 50 * time.Millisecond, Late: 100 * time.Millisecond, Connect: time.Second}

// world is a cluster, and a laptop with a daemon.
type world struct {
	*testing.T
	api        *clienttest.APIServer
	manager    *clienttest.Manager
	kubeconfig string
	options    daemon.Options
	daemon     daemonpb.DaemonClient
	stop       func() // ends the daemon as SIGTERM does
	ended      chan error

	environment *daemonpb.Environment      // that came with the last intercept
	frontTLS    atomic.Pointer[tls.Config] // instead of that of the TLS server before the API server
}

// newWorld has the Deployments orders and stock in namespace shop, and a manager.
func newWorld(t *testing.T) *world {
	w := &world{T: t, api: clienttest.NewAPIServer(t)}
	w.api.Add(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	w.api.Add(t, deployment("shop", "orders")...)
	w.api.Add(t, deployment("shop", "stock")...)
	w.manager = clienttest.NewManager(t, w.api)
	w.kubeconfig = w.api.Kubeconfig(t, "test")
	dir := t.TempDir()
	w.options = daemon.Options{
		Socket: filepath.Join(dir, "run", "d.sock"), CacheDir: filepath.Join(dir, "cache"),
		LogFile:  filepath.Join(dir, "log", "daemon.log"),
		LogLevel: "debug", Timing: quick,
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(w.options.LogFile)
			t.Logf("log of the daemon:\n%s", log)
		}
	})
	return w
}

// deployment is a Deployment with a service of one port, both of the same name.
func deployment(namespace, name string) []client.Object {
	labels := map[string]string{"app": name}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	return []client.Object{
		&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}},
		}}},
		&corev1.Service{ObjectMeta: meta,
			Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}},
	}
}

// start starts the daemon.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.Run(ctx, w.options) }()
	w.ended = ended
	w.stop = func() {
		cancel()
		select {
		case err := <-ended:
			assert.NoError(w, err)
			ended <- err
		case <-time.After(patience):
			w.Error("the daemon does not end")
		}
	}
	w.Cleanup(w.stop)
	w.dial()
}

func (w *world) dial() {
	var closer io.Closer
	require.Eventually(w, func() bool {
		var err error
		w.daemon, closer, err = socket.DialPath(w.Context(), w.options.Socket)
		return err == nil
	}, patience, 5*time.Millisecond)
	w.Cleanup(func() { _ = closer.Close() })
}

func (w *world) connectRequest() *daemonpb.ConnectRequest {
	return &daemonpb.ConnectRequest{KubeconfigEnv: w.kubeconfig}
}

func (w *world) connect() *daemonpb.StatusInfo {
	w.Helper()
	info, err := w.daemon.Connect(w.Context(), w.connectRequest())
	require.NoError(w, err)
	if !info.GetConnected() { // a connection can die young where the machine is busy
		w.eventually(func() bool { info = w.status(); return info.GetConnected() }, "it connects")
	}
	return info
}

func (w *world) status() *daemonpb.StatusInfo {
	w.Helper()
	info, err := w.daemon.Status(w.Context(), &daemonpb.Empty{})
	require.NoError(w, err)
	return info
}

// intercept makes one and returns its result and what was said meanwhile.
func (w *world) intercept(ctx context.Context, req *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo,
	[]string, error) {
	events, err := w.daemon.Intercept(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	var said []string
	var result *daemonpb.InterceptInfo
	w.environment = nil
	for {
		event, err := events.Recv()
		if errors.Is(err, io.EOF) {
			return result, said, nil
		}
		if err != nil {
			return nil, said, err
		}
		switch {
		case event.GetResult() != nil:
			result, w.environment = event.GetResult(), event.GetEnvironment()
		case event.GetWarning() != "":
			said = append(said, "warning: "+event.GetWarning())
		default:
			said = append(said, event.GetProgress())
		}
	}
}

func (w *world) mustIntercept(req *daemonpb.InterceptRequest) *daemonpb.InterceptInfo {
	w.Helper()
	info, _, err := w.intercept(w.Context(), req)
	require.NoError(w, err)
	require.NotNil(w, info)
	return info
}

// object is the only Intercept in the cluster.
func (w *world) object() *v1alpha1.Intercept {
	w.Helper()
	all := w.api.Intercepts()
	require.Len(w, all, 1)
	return &all[0]
}

// echo is a local process that answers each connection with its greeting and then with what it
// gets.
func (w *world) echo(greeting string) int32 {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(w, err)
	w.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, greeting)
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	n, _ := strconv.Atoi(port)
	return int32(n)
}

// unusedPort is one that nothing listens on.
func (w *world) unusedPort() int32 {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(w, err)
	defer listener.Close()
	return int32(listener.Addr().(*net.TCPAddr).Port)
}

// says is what the laptop's process says to a connection that is intercepted.
func (w *world) says(i *v1alpha1.Intercept, n int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, opened, err := w.manager.Open(ctx, i, false)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if opened.GetResult() != 0 {
		return "", errors.New(opened.GetResult().String() + ": " + opened.GetMessage())
	}
	got := make([]byte, n)
	_, err = io.ReadFull(conn, got)
	return string(got), err
}

// eventually waits for a fact.
func (w *world) eventually(fact func() bool, what string) {
	w.Helper()
	require.Eventually(w, fact, patience, 5*time.Millisecond, what)
}
