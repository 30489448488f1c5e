// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

// sleeper is a laptop whose sleep is a jump of the wall clock and the silence of all connections
// that it had.
type sleeper struct {
	*world
	ahead atomic.Int64 // of the wall clock
	cut   *clienttest.Cable
}

func newSleeper(t *testing.T) *sleeper {
	s := &sleeper{world: newWorld(t)}
	s.cut = clienttest.NewCable(t, s.api)
	s.kubeconfig = s.cut.Kubeconfig(t, "test")
	s.options.Wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(s.ahead.Load())) }
	s.options.Timing.Connect = 500 * time.Millisecond // an attempt in the dark is soon given up
	s.start()
	s.connect()
	return s
}

// sleep lets the laptop sleep for a time in which the cluster does what meanwhile says.
func (s *sleeper) sleep(d time.Duration, meanwhile func()) {
	s.Helper()
	s.cut.Pull()
	s.eventually(func() bool { return !s.status().GetConnected() }, "the laptop notices that it is cut off")
	meanwhile()
	s.ahead.Add(int64(d))
	s.cut.Plug()
	s.eventually(func() bool { return s.status().GetConnected() }, "it connects again")
}

// expire deletes all intercepts, as the manager does after its grace period.
func (s *sleeper) expire() {
	for _, i := range s.api.Intercepts() {
		s.api.Remove(s, &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: i.Namespace,
			Name: i.Name}})
	}
}

func (s *sleeper) news() []*daemonpb.EndedInfo {
	s.Helper()
	reply, err := s.daemon.Ended(s.Context(), &daemonpb.Empty{})
	require.NoError(s, err)
	return reply.GetEnded()
}

func TestALaptopThatWakesHasItsInterceptsBackOrIsToldWhyNot(t *testing.T) {
	const grace = 15 * time.Minute // what the manager of the tests says
	t.Run("a short sleep changes nothing, though every connection is dead", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		was := s.object().UID
		s.sleep(grace/2, func() {})
		assert.Equal(t, was, s.object().UID)
		got, err := s.says(s.object(), 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)
		assert.Empty(t, s.news())
		assert.Empty(t, s.status().GetEnded())
	})
	t.Run("what the manager has ended is made again, and what holds it goes on", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello"),
			Mechanism: "http", AutoHeader: true})
		stream := s.hold(t.Context(), "orders")
		was := s.object()
		s.sleep(time.Hour, s.expire)
		s.eventually(func() bool { return len(s.api.Intercepts()) == 1 }, "it is made again")
		now := s.object()
		assert.NotEqual(t, was.UID, now.UID)
		assert.Equal(t, was.Spec, now.Spec)
		got, err := s.says(now, 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)
		s.eventually(func() bool { return len(s.status().GetEnded()) == 0 }, "nothing has ended")
		assert.Empty(t, s.news())

		_, err = s.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		_, err = stream.Recv()
		assert.ErrorContains(t, err, "EOF", "the holder is told when the intercept is left, and not before")
	})
	t.Run("what somebody else has taken meanwhile is told with the name of who has it", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: s.echo("hi")})
		s.sleep(time.Hour, func() {
			s.expire()
			s.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
				if i.Spec.Workload.Name == "stock" {
					return clienttest.Active(i)
				}
				return clienttest.State(v1alpha1.StateConflict,
					`port http of Deployment orders is intercepted by bob@elsewhere (intercept "orders")`)(i)
			})
		})
		want := "this laptop was away for 1h, and the traffic manager keeps intercepts for 15m; " +
			`it cannot be recreated: port http of Deployment orders is intercepted by bob@elsewhere (intercept "orders")`
		s.eventually(func() bool {
			ended := s.status().GetEnded()
			return len(ended) == 1 && ended[0].GetReason() == want
		}, "it is said why")
		assert.Equal(t, "stock", s.object().Spec.Name, "the other is back")
		news := s.news()
		require.Len(t, news, 1)
		assert.Equal(t, []string{"orders", "shop", "Deployment", "orders"},
			[]string{news[0].GetName(), news[0].GetNamespace(), news[0].GetWorkloadKind(),
				news[0].GetWorkload()})
		assert.Empty(t, s.news(), "news are told once")
		assert.Len(t, s.status().GetEnded(), 1, "status goes on saying it")

		_, err := s.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		assert.Equal(t, reason.InterceptNotFound, reason.Of(err))
		assert.ErrorContains(t, err, "has ended already: this laptop was away for 1h")
		assert.Empty(t, s.status().GetEnded(), "who leaves it knows")
	})
	t.Run("what is taken by the user's own command is not made again twice", func(t *testing.T) {
		s := newWorld(t)
		s.start()
		s.connect()
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		s.api.Remove(t, &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop",
			Name: s.object().Name}})
		s.eventually(func() bool { return len(s.status().GetEnded()) == 1 }, "it is noticed")
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		assert.Empty(t, s.status().GetEnded())
		assert.Len(t, s.api.Intercepts(), 1)
	})
	t.Run("what somebody has deleted stays so", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		s.sleep(time.Hour, func() {}) // the manager was away too, and gives it another grace period
		s.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			st := clienttest.Active(i)
			st.Message = "it is there"
			return st
		})
		s.eventually(func() bool { return s.status().GetIntercepts()[0].GetMessage() == "it is there" },
			"the laptop has seen that it is there")
		s.expire()
		s.eventually(func() bool { return len(s.status().GetEnded()) == 1 }, "it is noticed")
		assert.Equal(t, "somebody deleted it in the cluster", s.news()[0].GetReason())
		assert.Empty(t, s.api.Intercepts())
	})
	t.Run("a cluster from which sidestep was removed", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		s.cut.Pull()
		s.eventually(func() bool { return !s.status().GetConnected() }, "the laptop notices that it is cut off")
		s.expire()
		s.manager.Kill()
		s.api.Remove(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep",
			Name: "sidestep-ca"}})
		s.cut.Plug()
		s.eventually(func() bool { return len(s.status().GetEnded()) == 1 }, "it is noticed")
		s.eventually(func() bool {
			return strings.Contains(s.status().GetMessage(),
				"the traffic manager is not installed")
		}, "and why there is no connection")
	})
	t.Run("a token that expired meanwhile", func(t *testing.T) {
		s := newSleeper(t)
		s.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: s.echo("hello")})
		s.cut.Pull()
		s.eventually(func() bool { return !s.status().GetConnected() }, "the laptop notices that it is cut off")
		s.api.Refuse(http.StatusUnauthorized)
		s.cut.Plug()
		says := `does not accept the credentials of context "test" — log in again, or check the kubeconfig`
		s.eventually(func() bool { return strings.Contains(s.status().GetMessage(), says) }, "status says so")
		_, err := s.daemon.List(t.Context(), &daemonpb.ListRequest{})
		assert.ErrorContains(t, err, says)
		_, _, err = s.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock"})
		assert.ErrorContains(t, err, says)
		s.api.Refuse(0)
		s.eventually(func() bool { return s.status().GetConnected() }, "with a new one it goes on")
		got, err := s.says(s.object(), 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)
	})
}

func TestAnInterceptThatEndedWhileNoDaemonRanIsTold(t *testing.T) {
	w := newWorld(t)
	cmd := w.spawn()
	w.connect()
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001})
	w.awaitRecord(`"name": "stock"`)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for _, i := range w.api.Intercepts() {
		if i.Spec.Name == "orders" {
			w.api.Remove(t, &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: i.Name}})
		}
	}
	w.spawn()
	w.eventually(func() bool { return len(w.status().GetEnded()) == 1 }, "it is missed")
	ended := w.status().GetEnded()[0]
	assert.Equal(t, "orders", ended.GetName())
	assert.Contains(t, ended.GetReason(), "it ended while no daemon ran here")
	require.Len(t, w.status().GetIntercepts(), 1)
	assert.Equal(t, "stock", w.status().GetIntercepts()[0].GetName())
}

func (w *world) awaitRecord(text string) {
	w.Helper()
	w.eventually(func() bool {
		record, _ := os.ReadFile(filepath.Join(w.options.CacheDir, "session.json"))
		return strings.Contains(string(record), text)
	}, "it is on disk: "+text)
}

func TestAnInterceptWhoseCommandDiedWithTheDaemonIsLeft(t *testing.T) {
	begin := func(t *testing.T, process int) *world {
		w := newWorld(t)
		cmd := w.spawn()
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001})
		stream, err := w.daemon.Hold(t.Context(),
			&daemonpb.HoldRequest{Intercept: "orders", Process: int32(process)})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)
		w.awaitRecord(fmt.Sprintf(`"holder": %d`, process))
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		require.Len(t, w.api.Intercepts(), 2)
		w.spawn()
		return w
	}
	t.Run("by the next daemon, which says so", func(t *testing.T) {
		dead := exec.Command("true")
		require.NoError(t, dead.Run())
		w := begin(t, dead.Process.Pid)
		w.eventually(func() bool { return len(w.status().GetEnded()) == 1 }, "it is left")
		assert.Equal(t, "stock", w.object().Spec.Name)
		reply, err := w.daemon.Ended(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		require.Len(t, reply.GetEnded(), 1)
		assert.Equal(t, "orders", reply.GetEnded()[0].GetName())
		assert.Equal(t, "the command that held it has ended, and so had the daemon that would have ended it", reply.GetEnded()[0].GetReason())
	})
	t.Run("but not if the command lives, and has it held again", func(t *testing.T) {
		alive := exec.Command("sleep", "60")
		require.NoError(t, alive.Start())
		w := begin(t, alive.Process.Pid)
		w.eventually(func() bool { return len(w.status().GetIntercepts()) == 2 }, "both are known again")
		ctx, release := context.WithCancel(t.Context())
		stream, err := w.daemon.Hold(ctx,
			&daemonpb.HoldRequest{Intercept: "orders", Process: int32(alive.Process.Pid)})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)
		require.NoError(t, alive.Process.Kill())
		_ = alive.Wait()
		assert.Never(t, func() bool { return len(w.api.Intercepts()) != 2 }, 600*time.Millisecond,
			50*time.Millisecond, "it is the call that counts")
		release()
		w.eventually(func() bool { return len(w.api.Intercepts()) == 1 }, "it is left with the call")
		assert.Empty(t, w.status().GetEnded(), "which is as it should be")
	})
}

func TestASessionWhoseCommandDiedWithTheDaemonEnds(t *testing.T) {
	w := newWorld(t)
	cmd := w.spawn()
	w.connect()
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
	dead := exec.Command("true")
	require.NoError(t, dead.Run())
	stream, err := w.daemon.Hold(t.Context(), &daemonpb.HoldRequest{Process: int32(dead.Process.Pid)})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	w.awaitRecord(fmt.Sprintf(`"process": %d`, dead.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	w.spawn()
	w.eventually(func() bool { return len(w.api.Intercepts()) == 0 }, "its intercepts are left")
	w.eventually(func() bool {
		return w.status().GetMessage() == "the session has ended: the command that held it has ended, and so had the daemon that would have ended it"
	}, "and it is said")
	assert.NoFileExists(t, filepath.Join(w.options.CacheDir, "session.json"))
	assert.True(t, w.connect().GetConnected())
	assert.Empty(t, w.status().GetMessage())
}

func TestAccessThatIsLostDuringASession(t *testing.T) {
	t.Run("a right to follow intercepts that is revoked", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		w.api.Deny(func(c clienttest.Call) bool { return c.Resource == "intercepts" })
		says := "the state of intercepts may be stale: dev may not list intercepts.sidestep.dev in namespace shop — ask for the ClusterRole sidestep-user there"
		w.eventually(func() bool {
			w.api.CutWatches() // also one that was just beginning
			return strings.Contains(w.status().GetMessage(), says)
		}, "status says so")
		assert.True(t, w.status().GetConnected())
		got, err := w.says(w.object(), 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got, "what there is goes on")
		_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		assert.Equal(t, reason.Forbidden, reason.Of(err))
		w.api.Deny(nil)
		w.eventually(func() bool { return w.status().GetMessage() == "" },
			"and nothing any more when it is there again")
	})
	t.Run("a kubeconfig that is deleted", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		require.NoError(t, os.Remove(w.kubeconfig))
		w.manager.Kill()
		w.eventually(func() bool { return !w.status().GetConnected() }, "the manager is away")
		w.manager.Start(t)
		w.eventually(func() bool { return w.status().GetConnected() }, "the session goes on with what it knows")
		assert.Contains(t, w.status().GetMessage(),
			`the state of intercepts may be stale: the kubeconfig has no context "test"`)
		_, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{})
		require.NoError(t, err)
		_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		assert.Empty(t, w.api.Intercepts())
		_, err = w.daemon.Connect(t.Context(), w.connectRequest())
		assert.Equal(t, reason.NoCluster, reason.Of(err), "who asks for a cluster is told")
	})
	t.Run("an API server whose certificate is another's", func(t *testing.T) {
		w := newWorld(t)
		front := w.front(func(*http.Request) bool { return true })
		w.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
		require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(w.kubeconfig), "ca.crt"), ca, 0o600))
		require.NoError(t, os.WriteFile(w.kubeconfig, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "%s", certificate-authority: ca.crt}}]
users: [{name: dev, user: {token: secret}}]
contexts: [{name: test, context: {cluster: test, user: dev, namespace: shop}}]
`, front.URL)), 0o600))
		w.start()
		w.connect()
		w.frontTLS.Store(&tls.Config{Certificates: []tls.Certificate{anotherCertificate(t)}})
		front.CloseClientConnections()
		w.api.Cut()
		says := "its certificate is signed by an authority that the kubeconfig does not trust — check your kubeconfig or VPN"
		w.eventually(func() bool { return strings.Contains(w.status().GetMessage(), says) }, "status says so")
		_, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{})
		assert.ErrorContains(t, err, says)
	})
}

// anotherCertificate is one of an authority that nobody knows.
func anotherCertificate(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
