// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/manager/certificate"
)

// apiServer starts an API server with the chart's CRDs and rights. It returns the configuration of
// an administrator and that of the manager's service account. It needs the programs that `make
// cluster-programs` builds, or KUBEBUILDER_ASSETS.
func apiServer(t *testing.T) (admin, manager *rest.Config) {
	t.Helper()
	env := &envtest.Environment{
		CRDDirectoryPaths: []string{"../deploy/chart/crds"}, ErrorIfCRDPathMissing: true,
		BinaryAssetsDirectory: assets(t), ControlPlaneStartTimeout: 2 * time.Minute,
	}
	admin, err := env.Start()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, env.Stop()) })
	scheme := Scheme()
	require.NoError(t, rbacv1.AddToScheme(scheme))
	c, err := client.New(admin, client.Options{Scheme: scheme})
	require.NoError(t, err)
	account := metav1.ObjectMeta{Namespace: "sidestep", Name: "sidestep-manager"}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sidestep"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}},
		&corev1.ServiceAccount{ObjectMeta: account},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep",
			Name: "sidestep-nodeagent"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: "sidestep-manager-tls"},
			Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": {}, "tls.key": {}}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: names.CA}},
	} {
		require.NoError(t, c.Create(t.Context(), o))
	}
	for _, o := range managerRights(t) {
		require.NoError(t, c.Create(t.Context(), o))
	}
	manager = rest.CopyConfig(admin)
	manager.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:sidestep:sidestep-manager",
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
	}
	return admin, manager
}

// plain returns the documents of a template of the chart, without what the chart fills in.
func plain(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile("../deploy/chart/templates/" + name)
	require.NoError(t, err)
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "{{") {
			kept.WriteString(line)
		}
	}
	return strings.Split(kept.String(), "\n---\n")
}

// managerRights are the chart's Roles for the manager, and their bindings.
func managerRights(t *testing.T) []client.Object {
	t.Helper()
	var all []client.Object
	for _, document := range plain(t, "manager-rbac.yaml") {
		var kind metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(document), &kind))
		o := map[string]client.Object{"ClusterRole": &rbacv1.ClusterRole{},
			"ClusterRoleBinding": &rbacv1.ClusterRoleBinding{}, "Role": &rbacv1.Role{},
			"RoleBinding": &rbacv1.RoleBinding{}}[kind.Kind]
		require.NotNil(t, o, kind.Kind)
		require.NoError(t, yaml.Unmarshal([]byte(document), o))
		var subjects []rbacv1.Subject
		switch o := o.(type) {
		case *rbacv1.Role:
			o.Namespace = "sidestep"
		case *rbacv1.RoleBinding:
			o.Namespace, subjects = "sidestep", o.Subjects
		case *rbacv1.ClusterRoleBinding:
			subjects = o.Subjects
		}
		for i := range subjects {
			subjects[i].Namespace = "sidestep"
		}
		all = append(all, o)
	}
	require.Len(t, all, 6)
	return all
}

// assets returns a directory with etcd and kube-apiserver.
func assets(t *testing.T) string {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") != "" {
		return ""
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	dir := t.TempDir()
	for _, program := range []string{"etcd-*/etcd", "kubernetes-*/kube-apiserver", "kubernetes-*/kubectl"} {
		found, err := filepath.Glob(filepath.Join(cache, "sidestep-cluster", program))
		require.NoError(t, err)
		if len(found) == 0 && os.Getenv("CI") != "" {
			t.Fatal("no API server to test with: make test-unit builds one first")
		} else if len(found) == 0 {
			t.Skip("no API server to test with: run make cluster-programs once, or set KUBEBUILDER_ASSETS")
		}
		require.NoError(t, os.Symlink(found[len(found)-1], filepath.Join(dir, filepath.Base(program))))
	}
	return dir
}

func TestWithARealAPIServer(t *testing.T) {
	admin, rights := apiServer(t)
	k := &kube{}
	var err error
	k.WithWatch, err = client.NewWithWatch(admin, client.Options{Scheme: Scheme()})
	require.NoError(t, err)
	t.Run("wrong objects are refused with a reason", func(t *testing.T) { refuses(t, k) })

	c, err := NewClient(rights)
	require.NoError(t, err)
	t.Run("only those who may read environments may ask for them",
		func(t *testing.T) { guards(t, k, admin, c) })
	t.Run("only laptops that have logged in are admitted", func(t *testing.T) { logsIn(t, k, admin, c) })
	m := startWith(t, c, func(o *Options) { o.SessionGrace = 2 * time.Second })
	m.ready(t)
	rs := k.shop(t)
	k.run(t, k.pod(t, rs, "p1", "node-1"))
	t.Run("only a node agent's token of the node is accepted", func(t *testing.T) { reviews(t, k, m) })
	a := m.agentWith(t, "node-1", k.token(t, "sidestep-nodeagent", "node-1"))
	l := m.laptop(t, "alice", 0)
	t.Run("an intercept becomes active in little time", func(t *testing.T) { measure(t, k) })
	t.Run("an intercept follows its pods", func(t *testing.T) {
		k.create(t, asks("alice", "http", "tcp"))
		k.until(t, "alice", v1alpha1.StateActive)
		p2 := k.pod(t, rs, "p2", "node-1")
		k.run(t, p2)
		require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "2/2" },
			patient, often)
		require.NoError(t, k.Delete(t.Context(), p2, client.GracePeriodSeconds(0)))
		require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "1/1" },
			patient, often)
		a.has(t, "p1:8080=alice")
	})
	t.Run("pods that a service publishes before they are ready count", func(t *testing.T) { published(t, k) })
	t.Run("certificates are kept and rotated with the chart's rights",
		func(t *testing.T) { rotates(t, k, c) })
	t.Run("an intercept ends some time after its laptop went", func(t *testing.T) {
		l.cancel()
		k.until(t, "alice", v1alpha1.StateDisconnected)
		events := &corev1.EventList{}
		require.Eventually(t, func() bool {
			return k.List(t.Context(), events, client.InNamespace(ns)) == nil && len(events.Items) == 1
		}, patient, often)
		assert.Equal(t, "SessionGone", events.Items[0].Reason)
		a.has(t)
	})
}

// run makes a pod ready, as a kubelet would.
func (k *kube) run(t *testing.T, p *corev1.Pod) {
	t.Helper()
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
		HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	require.NoError(t, k.Status().Update(t.Context(), p))
}

// token makes a token as the kubelet projects it into a pod.
func (k *kube) token(t *testing.T, account, node string, audiences ...string) string {
	t.Helper()
	if len(audiences) == 0 {
		audiences = []string{"sidestep-manager"}
	}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	require.NoError(t, client.IgnoreAlreadyExists(k.Create(t.Context(), n)))
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", GenerateName: "agent-"},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "i"}},
		}}
	require.NoError(t, k.Create(t.Context(), p))
	request := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		Audiences: audiences, BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod",
			APIVersion: "v1", Name: p.Name, UID: p.UID},
	}}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: account}}
	require.NoError(t, k.SubResource("token").Create(t.Context(), sa, request))
	return request.Status.Token
}

func reviews(t *testing.T, k *kube, m *running) {
	for _, tc := range []struct {
		name, token string
		want        codes.Code
	}{
		{"another account", k.token(t, "sidestep-manager", "node-1"), codes.PermissionDenied},
		{"another node", k.token(t, "sidestep-nodeagent", "node-2"), codes.PermissionDenied},
		{"another audience", k.token(t, "sidestep-nodeagent", "node-1", "api"), codes.Unauthenticated},
		{"no token at all", "nonsense", codes.Unauthenticated},
	} {
		a := m.agentWith(t, "node-1", tc.token)
		assert.Equal(t, tc.want, status.Code(<-a.ended), tc.name)
	}
}

// measure makes and deletes intercepts one after the other.
func measure(t *testing.T, k *kube) {
	var took []time.Duration
	w, err := k.Watch(t.Context(), &v1alpha1.InterceptList{}, client.InNamespace(ns))
	require.NoError(t, err)
	defer w.Stop()
	for range 30 {
		ic := asks("alice", "http", "alice")
		began := time.Now()
		k.create(t, ic)
		for event := range w.ResultChan() {
			now := event.Object.(*v1alpha1.Intercept)
			if now.UID == ic.UID && now.Status.State == v1alpha1.StateActive {
				break
			}
		}
		took = append(took, time.Since(began))
		require.NoError(t, k.Delete(t.Context(), ic))
	}
	slices.Sort(took)
	t.Logf("from create to ACTIVE: p50 %s, slowest %s", took[len(took)/2], took[len(took)-1])
	assert.Less(t, took[len(took)/2], 500*time.Millisecond, "20 ms on an idle machine")
}

// refuses checks what the API server says to wrong objects.
func refuses(t *testing.T, k *kube) {
	text := func(s string) *string { return &s }
	for _, tc := range []struct {
		name   string
		change func(*v1alpha1.InterceptSpec)
		says   string
	}{
		{"a tcp intercept with conditions",
			func(s *v1alpha1.InterceptSpec) { s.Mechanism = v1alpha1.MechanismTCP },
			"spec.http needs mechanism http: a tcp intercept takes every connection"},
		{"an unknown mechanism", func(s *v1alpha1.InterceptSpec) { s.Mechanism, s.HTTP = "udp", nil },
			`Unsupported value: "udp": supported values: "tcp", "http"`},
		{"an unknown kind of workload", func(s *v1alpha1.InterceptSpec) { s.Workload.Kind = "Service" },
			`supported values: "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Pod", "Rollout"`},
		{"no workload", func(s *v1alpha1.InterceptSpec) { s.Workload.Name = "" },
			"spec.workload.name in body should be at least 1 chars long"},
		{"a key where its hash belongs",
			func(s *v1alpha1.InterceptSpec) { s.Client.KeyHash = "secret" },
			"spec.client.keyHash in body should match"},
		{"a session that is no UUID", func(s *v1alpha1.InterceptSpec) { s.Client.Session = "mine" },
			"spec.client.session in body should match"},
		{"a header by value and expression",
			func(s *v1alpha1.InterceptSpec) { s.HTTP.Headers[0].Regex = text(".*") },
			"give either value or regex, and not both"},
		{"a header by nothing", func(s *v1alpha1.InterceptSpec) { s.HTTP.Headers[0].Value = nil },
			"give either value or regex, and not both"},
		{"a header name with a space",
			func(s *v1alpha1.InterceptSpec) { s.HTTP.Headers[0].Name = "x dev" },
			"spec.http.headers[0].name in body should match"},
		{"a path in two ways", func(s *v1alpha1.InterceptSpec) {
			s.HTTP.Path = &v1alpha1.PathMatch{Equal: text("/a"), Prefix: text("/")}
		}, "give exactly one of equal, prefix and regex"},
		{"a path in no way", func(s *v1alpha1.InterceptSpec) { s.HTTP.Path = &v1alpha1.PathMatch{} },
			"give exactly one of equal, prefix and regex"},
		{"a port that cannot be", func(s *v1alpha1.InterceptSpec) { s.Destination.Port = 70000 },
			"spec.destination.port"},
		{"an unknown way with open connections",
			func(s *v1alpha1.InterceptSpec) { s.Existing = "kill" },
			`supported values: "auto", "idle", "all", "none"`},
	} {
		ic := asks("alice", "http", "alice")
		tc.change(&ic.Spec)
		assert.ErrorContains(t, k.Create(t.Context(), ic), tc.says, tc.name)
	}

	ic := asks("alice", "http", "alice")
	ic.Spec.Existing = ""
	k.create(t, ic)
	assert.Equal(t, "auto", ic.Spec.Existing)
	for _, change := range []func(*v1alpha1.InterceptSpec){
		func(s *v1alpha1.InterceptSpec) { s.Client.Holder = "bob" },
		func(s *v1alpha1.InterceptSpec) { s.HTTP.Headers[0].Value = text("bob") },
		func(s *v1alpha1.InterceptSpec) { s.HTTP = nil },
		func(s *v1alpha1.InterceptSpec) { s.Workload.Name = "stock" },
	} {
		changed := ic.DeepCopy()
		change(&changed.Spec)
		assert.ErrorContains(t, k.Update(t.Context(), changed),
			"of an intercept cannot change: delete it and create another")
	}
	changed := ic.DeepCopy()
	changed.Spec.Wiretap = true
	assert.ErrorContains(t, k.Update(t.Context(), changed),
		"an intercept cannot become a wiretap, nor a wiretap an intercept")
	ic.Spec.Port, ic.Spec.Service, ic.Spec.Container = "grpc", "orders", "app"
	assert.NoError(t, k.Update(t.Context(), ic), "an intercept may move")
	require.NoError(t, k.Delete(t.Context(), ic))
}

// published checks an intercept of pods that are never ready, and have traffic all the same.
func published(t *testing.T, k *kube) {
	labels := map[string]string{"app": "peers"}
	s := &appsv1.StatefulSet{ObjectMeta: objectMeta("peers"), Spec: appsv1.StatefulSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(), ServiceName: "peers",
	}}
	s.Spec.Template.Labels = labels
	require.NoError(t, k.Create(t.Context(), s))
	headless := &corev1.Service{ObjectMeta: objectMeta("peers"), Spec: corev1.ServiceSpec{
		Selector: labels, ClusterIP: corev1.ClusterIPNone,
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
	}}
	require.NoError(t, k.Create(t.Context(), headless))
	p := &corev1.Pod{ObjectMeta: objectMeta("peers-0"), Spec: template().Spec}
	p.Labels, p.Spec.NodeName, p.OwnerReferences = labels, "node-1", ownedBy("StatefulSet", s)
	require.NoError(t, k.Create(t.Context(), p))
	k.run(t, p)
	gate := `the status of pod readiness gate "example.com/joined" is not "True", but False`
	p.Status.Conditions[0] = corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse,
		Reason: "ReadinessGatesNotReady", Message: gate}
	require.NoError(t, k.Status().Update(t.Context(), p))

	ic := asks("alice", "http", "alice")
	ic.Name, ic.Spec.Workload = "peers", v1alpha1.WorkloadReference{Kind: "StatefulSet", Name: "peers"}
	require.NoError(t, k.Create(t.Context(), ic))
	ic = k.until(t, "peers", v1alpha1.StateNoPods)
	assert.Contains(t, ic.Status.Message, gate, "kubectl get pods shows 1/1")
	headless.Spec.PublishNotReadyAddresses = true
	require.NoError(t, k.Update(t.Context(), headless))
	ic = k.until(t, "peers", v1alpha1.StateActive)
	assert.Equal(t, "1/1", ic.Status.Coverage)
	require.NoError(t, k.Delete(t.Context(), ic))
}

// rotates checks a rotation of the authority with the rights that the chart grants.
func rotates(t *testing.T, k *kube, c client.Client) {
	config := certificate.KeeperConfig{
		Client: c, Namespace: "sidestep", Secret: "sidestep-manager-tls", ConfigMap: names.CA,
		Names: certificate.Names("sidestep"), Reconnected: func(time.Time) bool { return true },
		Log: slog.New(slog.DiscardHandler), Timing: certificate.DefaultTiming(),
	}
	config.Timing.Announce, config.Timing.Overlap, config.Timing.Check = 0, 0, 10*time.Millisecond
	keeper := certificate.NewKeeper(config)
	require.NoError(t, keeper.Check(t.Context()))
	trusted := func() string {
		m := &corev1.ConfigMap{}
		require.NoError(t, k.Get(t.Context(), client.ObjectKey{Namespace: "sidestep", Name: names.CA}, m))
		return m.Data["ca.crt"]
	}
	before := trusted()
	require.Equal(t, 1, strings.Count(before, "BEGIN CERTIFICATE"))
	secret := &corev1.Secret{}
	require.NoError(t, k.Get(t.Context(), client.ObjectKey{Namespace: "sidestep", Name: config.Secret}, secret))
	secret.Annotations = map[string]string{certificate.RotateAnnotation: "now"}
	secret.Annotations["example.com/other"] = "stays"
	require.NoError(t, k.Update(t.Context(), secret))
	require.Eventually(t, func() bool {
		require.NoError(t, keeper.Check(t.Context()))
		now := trusted()
		return strings.Count(now, "BEGIN CERTIFICATE") == 1 && now != before
	}, patient, often)
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(secret), secret))
	assert.Equal(t, "stays", secret.Annotations["example.com/other"])

	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: "other"}}
	require.NoError(t, k.Create(t.Context(), other))
	assert.True(t, apierrors.IsForbidden(c.Get(t.Context(), client.ObjectKeyFromObject(other), other)))
	assert.True(t, apierrors.IsForbidden(c.Delete(t.Context(), secret)))
}
