// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
)

const (
	ns      = "shop"
	patient = 10 * time.Second
	often   = 5 * time.Millisecond
)

// kube is an API server in memory. Tokens are "node/<name>" for a good one of that node.
type kube struct {
	client.WithWatch
	lists   atomic.Int32 // that informers have made
	watches atomic.Int32
	reviews atomic.Int32
	lacking sync.Map // what users may not, as "ann get intercepts/topod"; the rest they may
	// blocked is set while lists of pods wait for release.
	blocked atomic.Bool
	release chan struct{}
	next    atomic.Int64
}

// IsWatchListSemanticsUnSupported tells informers to list and watch: the fake has nothing better.
func (k *kube) IsWatchListSemanticsUnSupported() bool { return true }

func newKube(objects ...client.Object) *kube {
	k := &kube{release: make(chan struct{})}
	k.WithWatch = fake.NewClientBuilder().WithScheme(Scheme()).WithStatusSubresource(
		&v1alpha1.Intercept{}).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, obj client.Object,
				opts ...client.CreateOption) error {
				if review, ok := obj.(*authv1.TokenReview); ok {
					k.reviews.Add(1)
					k.review(review)
					return nil
				}
				if review, ok := obj.(*authzv1.SubjectAccessReview); ok {
					asks := review.Spec.ResourceAttributes
					_, lacks := k.lacking.Load(strings.TrimSuffix(review.Spec.User+" "+asks.Verb+" "+
						asks.Resource+"/"+asks.Subresource, "/"))
					review.Status.Allowed = !lacks
					return nil
				}
				return c.Create(ctx, obj, opts...)
			},
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList,
				opts ...client.ListOption) error {
				if _, ok := list.(*corev1.PodList); ok {
					if k.blocked.Load() {
						<-k.release
					}
				}
				defer k.lists.Add(1)
				return c.List(ctx, list, opts...)
			},
			Watch: func(ctx context.Context, c client.WithWatch, list client.ObjectList,
				opts ...client.ListOption) (watch.Interface, error) {
				w, err := c.Watch(ctx, list, opts...)
				k.watches.Add(1)
				return w, err
			},
		}).Build()
	return k
}

func (k *kube) review(r *authv1.TokenReview) {
	node, ok := strings.CutPrefix(r.Spec.Token, "node/")
	if !ok {
		r.Status.Error = "unknown token"
		return
	}
	r.Status = authv1.TokenReviewStatus{
		Authenticated: true, Audiences: r.Spec.Audiences,
		User: authv1.UserInfo{
			Username: "system:serviceaccount:sidestep:sidestep-nodeagent",
			Extra:    map[string]authv1.ExtraValue{"authentication.kubernetes.io/node-name": {node}},
		},
	}
}

// create gives each object a UID, as the API server does.
func (k *kube) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if o.GetUID() == "" {
			o.SetUID(types.UID(fmt.Sprintf("uid-%d", k.next.Add(1))))
		}
		require.NoError(t, k.Create(t.Context(), o))
	}
}

func (k *kube) intercept(t *testing.T, name string) *v1alpha1.Intercept {
	t.Helper()
	ic := &v1alpha1.Intercept{}
	require.NoError(t, k.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: name}, ic))
	return ic
}

// until waits until an intercept is in a state, and returns it.
func (k *kube) until(t *testing.T, name string, state v1alpha1.State) *v1alpha1.Intercept {
	t.Helper()
	var last *v1alpha1.Intercept
	ok := assert.Eventually(t, func() bool {
		last = k.intercept(t, name)
		return last.Status.State == state
	}, patient, often)
	require.True(t, ok, "intercept %s is %s (%s), not %s", name, last.Status.State, last.Status.Message, state)
	return last
}

// running is a manager at work.
type running struct {
	*Manager
	kube       *kube
	grpc, http string
	connect    string
	tls        *tls.Config
	stop       context.CancelFunc
	done       chan error
	logged     *logged
}

// logged is a log that may be read while it is written.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// logs waits for a line that has all parts.
func (r *running) logs(t *testing.T, parts ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		r.logged.mu.Lock()
		text := r.logged.text.String()
		r.logged.mu.Unlock()
		for line := range strings.Lines(text) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	}, patient, often, "a line with %q", parts)
}

// informers is how many the manager has.
const informers = 11

// TestTheHarnessKnowsHowManyInformersThereAre keeps start from returning while one has not begun to watch.
func TestTheHarnessKnowsHowManyInformersThereAre(t *testing.T) {
	k := newKube()
	startWith(t, k).ready(t) // each has made its list
	assert.EqualValues(t, informers, k.lists.Load())
}

// start starts a manager, and returns when its informers watch.
func start(t *testing.T, k *kube, change ...func(*Options)) *running {
	t.Helper()
	before := k.watches.Load()
	r := startWith(t, k, change...)
	r.kube = k
	// Events between an informer's list and its watch are lost with the fake.
	want := before + informers
	if k.blocked.Load() {
		want--
	}
	require.Eventually(t, func() bool { return k.watches.Load() >= want }, patient, often)
	return r
}

func startWith(t *testing.T, c client.WithWatch, change ...func(*Options)) *running {
	t.Helper()
	dir := t.TempDir()
	pool := writeCertificate(t, dir)
	o := Options{TLSDir: dir, Namespace: "sidestep", SessionGrace: time.Hour, OlderLaptops: true,
		ReviewRights: true, ReviewEvery: 50 * time.Millisecond,
		AgentServiceAccount: "sidestep-nodeagent", TokenAudience: "sidestep-manager"}
	for _, f := range change {
		f(&o)
	}
	logged := &logged{}
	m, err := New(o, c, slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), logged), &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	grpcListener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	httpListener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	connectListener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	r := &running{
		Manager: m, grpc: grpcListener.Addr().String(), http: "http://" + httpListener.Addr().String(),
		connect: connectListener.Addr().String(),
		tls:     &tls.Config{RootCAs: pool, ServerName: "sidestep-manager"}, stop: stop, done: make(chan error, 1),
		logged: logged,
	}
	go func() { r.done <- m.serve(ctx, listeners{grpcListener, httpListener, connectListener}) }()
	t.Cleanup(r.end)
	return r
}

// end stops the manager and waits for it.
func (r *running) end() {
	r.stop()
	if err, ok := <-r.done; ok {
		if err != nil {
			panic(err)
		}
		close(r.done)
	}
}

func (r *running) ready(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		code,
			_ := get(t, r.http+"/readyz")
		return code == http.StatusOK
	}, patient, often)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

// measures waits for lines among the metrics.
func (r *running) measures(t *testing.T, lines ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, metrics := get(t, r.http+"/metrics")
		for _, line := range lines {
			assert.True(c, strings.Contains("\n"+metrics, "\n"+line+"\n"), "metric %s", line)
		}
	}, patient, often)
}

// dial makes a connection that shows the metadata with each call.
func (r *running) dial(t *testing.T, pairs ...string) *grpc.ClientConn {
	t.Helper()
	with := func(ctx context.Context) context.Context { return metadata.AppendToOutgoingContext(ctx, pairs...) }
	conn, err := grpc.NewClient(r.grpc, append(tunnel.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(r.tls)),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn,
			method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(with(ctx), desc, cc, method, opts...)
		}))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "sidestep-manager"},
		DNSNames:  []string{"sidestep-manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "sidestep-manager"}},
		key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"), certPEM, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(certPEM))
	return pool
}

// The objects of a small shop: Deployment orders behind service orders.

func objectMeta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func ownedBy(kind string, owner client.Object) []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: owner.GetName(),
		UID: owner.GetUID(), Controller: &yes}}
}

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "orders"}}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app", Image: "orders",
			Env: []corev1.EnvVar{{Name: "SECRET", Value: "x"}}, Ports: []corev1.ContainerPort{
				{Name: "web", ContainerPort: 8080}, {Name: "rpc", ContainerPort: 9000},
			}}},
	}}
}

// shop creates the Deployment, its ReplicaSet and its service, and returns the ReplicaSet.
func (k *kube) shop(t *testing.T) *appsv1.ReplicaSet {
	t.Helper()
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "orders"}}
	d := &appsv1.Deployment{ObjectMeta: objectMeta("orders"),
		Spec: appsv1.DeploymentSpec{Selector: selector, Template: template()}}
	k.create(t, d)
	rs := &appsv1.ReplicaSet{ObjectMeta: objectMeta("orders-1"),
		Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template()}}
	rs.OwnerReferences = ownedBy("Deployment", d)
	k.create(t, rs, &corev1.Service{ObjectMeta: objectMeta("orders"), Spec: corev1.ServiceSpec{
		Selector: selector.MatchLabels, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromString("web")},
			{Name: "grpc", Port: 9090, TargetPort: intstr.FromInt32(9000)},
		},
	}})
	return rs
}

func (k *kube) pod(t *testing.T, rs *appsv1.ReplicaSet, name, node string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: objectMeta(name), Spec: template().Spec, Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.1", HostIP: "192.0.2.1",
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}}
	p.OwnerReferences = ownedBy("ReplicaSet", rs)
	p.Spec.NodeName = node
	k.create(t, p)
	return p
}

// key is a session key for a name.
func sessionKey(of string) []byte {
	sum := sha256.Sum256([]byte("key of " + of))
	return sum[:]
}

// asks makes an intercept of Deployment orders; header "tcp" takes every connection, and "" every
// request.
func asks(holder, port, header string) *v1alpha1.Intercept {
	sum := sha256.Sum256(sessionKey(holder))
	ic := &v1alpha1.Intercept{ObjectMeta: objectMeta(holder)}
	ic.Annotations = map[string]string{v1alpha1.KnowsUDP: "true"}
	ic.Generation = 1
	ic.CreationTimestamp = metav1.Now()
	ic.Spec = v1alpha1.InterceptSpec{
		Name: "orders", Workload: v1alpha1.WorkloadReference{Kind: "Deployment", Name: "orders"}, Port: port,
		Mechanism: v1alpha1.MechanismHTTP, Existing: "auto",
		Client: v1alpha1.ClientReference{Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11",
			Holder: holder + "@laptop", KeyHash: hex.EncodeToString(sum[:])},
	}
	switch header {
	case "tcp":
		ic.Spec.Mechanism = v1alpha1.MechanismTCP
	case "":
	default:
		ic.Spec.HTTP = &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Value: &header}}}
	}
	return ic
}
