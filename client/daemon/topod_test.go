// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

// visits says something to a local port and gives what comes back, which is nothing if it leads
// nowhere.
func (w *world) visits(port int32) string {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, " hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	got, _ := io.ReadAll(conn)
	return string(got)
}

// listens says whether anything takes connections on a local port.
func (w *world) listens(port int32) bool {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// quietPort is one that nothing listens on, and that is given to nobody who does not ask for it.
func (w *world) quietPort() int32 {
	for {
		port := 20000 + rand.Int32N(10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = l.Close()
			return port
		}
	}
}

func TestPortsOfThisLaptopLeadToPods(t *testing.T) {
	w := connected(t)
	pod := atomic.Pointer[string]{}
	is := func(name string) { pod.Store(&name) }
	is("orders-0")
	w.manager.ToPods(func(open *tunnelpb.Open) string {
		return fmt.Sprintf("%s/%s:%d", *pod.Load(), open.GetInterceptName(), open.GetToPort())
	})
	first, second := w.quietPort(), w.quietPort()
	req := &daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{first}}
	info := w.mustIntercept(req)
	assert.Equal(t, []int32{first}, info.GetToPod())
	object := w.object()
	assert.Equal(t, []int32{first}, object.Spec.ToPod)
	says := func(port int32) string { return fmt.Sprintf("%s/%s:%d hello", *pod.Load(), object.Name, port) }
	assert.Equal(t, says(first), w.visits(first))
	is("orders-1")
	assert.Equal(t, says(first), w.visits(first), "the next connection goes to the pod that there is now")

	t.Run("the same command with other ports changes them", func(t *testing.T) {
		req.ToPod = []int32{second}
		w.mustIntercept(req)
		assert.Equal(t, says(second), w.visits(second))
		assert.False(t, w.listens(first))
	})
	t.Run("a daemon that comes after has them again", func(t *testing.T) {
		w.stop()
		assert.False(t, w.listens(second))
		w.start()
		w.eventually(func() bool { return w.visits(second) == says(second) }, "the port leads to the pod again")
	})
	t.Run("another intercept may not have it", func(t *testing.T) {
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001, ToPod: []int32{second}})
		assert.Equal(t, reason.LocalPortTaken, reason.Of(err))
		_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock", LocalPort: second})
		assert.Equal(t, reason.LocalPortTaken, reason.Of(err))
		_, _, err = w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001, ToPod: []int32{9000}})
		assert.ErrorContains(t, err,
			"--to-pod 9000: the requests of intercept orders go to that port of this laptop — ")
	})
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", second))
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 5))
	require.NoError(t, err)
	_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
	require.NoError(t, err)
	assert.False(t, w.listens(second), "it is gone when leave has returned")
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.ReadAll(conn)
	assert.Error(t, err, "and so are its connections")
	assert.NotErrorIs(t, err, net.ErrClosed)
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001, ToPod: []int32{second}})
}

func TestPortsThatCannotLeadToPods(t *testing.T) {
	t.Run("one that is in use: nothing is made", func(t *testing.T) {
		w := connected(t)
		used, free := w.echo("mine"), w.quietPort()
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{free, used}})
		assert.Equal(t, reason.LocalPortTaken, reason.Of(err))
		assert.ErrorContains(t, err,
			fmt.Sprintf("--to-pod needs port %d of this laptop, and cannot have it: it is in use — stop what listens there, or leave --to-pod %d out", used, used))
		assert.Empty(t, w.api.Intercepts())
		assert.False(t, w.listens(free))
	})
	t.Run("the intercept's own, by number or by the container's", func(t *testing.T) {
		w := connected(t)
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{9000}})
		assert.ErrorContains(t, err, "would lead from there to the pod")
		w.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			s := clienttest.Active(i)
			s.Pods[0].Port = i.Spec.ToPod[0]
			return s
		})
		port := w.quietPort()
		_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", ToPod: []int32{port}})
		assert.ErrorContains(t, err, "would lead from there to the pod")
		assert.Empty(t, w.api.Intercepts())
		assert.False(t, w.listens(port))
	})
	t.Run("an intercept that is refused leaves no port behind", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(clienttest.State(v1alpha1.StateConflict, "bob has it"))
		port := w.quietPort()
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{port}})
		assert.ErrorContains(t, err, "bob has it")
		assert.False(t, w.listens(port))
	})
	t.Run("a cluster that knows no such ports", func(t *testing.T) {
		w := connected(t)
		w.api.Admit(func(_ clienttest.Call, object *unstructured.Unstructured) string {
			unstructured.RemoveNestedField(object.Object, "spec", "toPod")
			return ""
		})
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{w.quietPort()}})
		assert.Equal(t, reason.VersionSkew, reason.Of(err))
		assert.ErrorContains(t, err, "— run `sidestep helm upgrade`")
		assert.Empty(t, w.api.Intercepts())
	})
	t.Run("nothing listens in the pod, the manager is old, or away", func(t *testing.T) {
		w := connected(t)
		port := w.quietPort()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, ToPod: []int32{port}})
		assert.Empty(t, w.visits(port))
		w.manager.ToPods(func(*tunnelpb.Open) string { return "" })
		assert.Empty(t, w.visits(port))
		w.manager.ToPods(func(*tunnelpb.Open) string { return "hi" })
		w.manager.Kill()
		assert.Empty(t, w.visits(port))
		w.manager.Start(t)
		w.eventually(func() bool { return w.visits(port) == "hi hello" }, "it is back with the manager")
	})
}
