package install

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/kube"
	kubefake "helm.sh/helm/v3/pkg/kube/fake"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubernetesfake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/deploy"
)

// helmClient is what helm creates objects with. It does not create them anywhere, and calls a function before it does not.
type helmClient struct {
	kubefake.PrintingKubeClient
	build func() error
}

func (h *helmClient) Build(manifest io.Reader, validate bool) (kube.ResourceList, error) {
	if h.build != nil {
		if err := h.build(); err != nil {
			return nil, err
		}
	}
	return h.PrintingKubeClient.Build(manifest, validate)
}

// fixture is a cluster of fakes.
type fixture struct {
	*Cluster
	kube     *kubernetesfake.Clientset
	dynamic  *dynamicfake.FakeDynamicClient
	client   *helmClient
	releases *storage.Storage
	mu       sync.Mutex
	steps    []string
}

func newFixture(t *testing.T, objects ...runtime.Object) *fixture {
	t.Helper()
	chart, err := fs.Sub(deploy.Chart, "chart")
	require.NoError(t, err)
	f := &fixture{kube: kubernetesfake.NewClientset(), client: &helmClient{PrintingKubeClient: kubefake.PrintingKubeClient{Out: io.Discard, LogOutput: io.Discard}}}
	f.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		crdResource: "CustomResourceDefinitionList", interceptResource: "InterceptList",
	}, objects...)
	f.dynamic.PrependReactor("create", crdResource.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		// The API server establishes what it accepts.
		crd := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
		require.NoError(t, unstructured.SetNestedSlice(crd.Object, []any{map[string]any{"type": "Established", "status": "True"}}, "status", "conditions"))
		return false, nil, nil
	})
	f.dynamic.PrependReactor("update", crdResource.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		// An update does not touch the status.
		crd := a.(clienttesting.UpdateAction).GetObject().(*unstructured.Unstructured)
		there, err := f.dynamic.Tracker().Get(crdResource, "", crd.GetName())
		if err == nil {
			crd.Object["status"] = there.(*unstructured.Unstructured).Object["status"]
		}
		return false, nil, nil
	})
	memory := driver.NewMemory()
	memory.SetNamespace("sidestep")
	f.releases = storage.Init(memory)
	f.Cluster = &Cluster{
		namespace: "sidestep", version: "v1.2.3", program: "sidestep", chart: chart, server: "https://10.0.0.1:6443", kube: f.kube, dynamic: f.dynamic,
		poll: time.Millisecond, settle: time.Millisecond,
		helm: func() (*action.Configuration, error) {
			capabilities := chartutil.DefaultCapabilities.Copy()
			capabilities.KubeVersion.Version = "v1.34.0"
			return &action.Configuration{Releases: f.releases, KubeClient: f.client, Capabilities: capabilities, Log: func(string, ...any) {}}, nil
		},
	}
	return f
}

func (f *fixture) settings() Settings {
	return Settings{CreateNamespace: true, Wait: true, Timeout: 200 * time.Millisecond, Progress: func(s string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.steps = append(f.steps, s)
	}}
}

// last is the release as helm has stored it.
func (f *fixture) last(t *testing.T) *release.Release {
	t.Helper()
	r, err := f.releases.Last(releaseName)
	require.NoError(t, err)
	return r
}

// rendered are the objects of a release, by kind and name.
func rendered(t *testing.T, r *release.Release) map[string]*unstructured.Unstructured {
	t.Helper()
	objects := map[string]*unstructured.Unstructured{}
	for document := range strings.SplitSeq(r.Manifest, "\n---\n") {
		u := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(document), &u.Object))
		if len(u.Object) > 0 {
			objects[u.GetKind()+"/"+u.GetName()] = u
		}
	}
	return objects
}

func images(t *testing.T, r *release.Release) string {
	t.Helper()
	var all []string
	for _, name := range []string{"Deployment/sidestep-manager", "DaemonSet/sidestep-nodeagent"} {
		u := rendered(t, r)[name]
		require.NotNil(t, u, name)
		containers, _, err := unstructured.NestedSlice(u.Object, "spec", "template", "spec", "containers")
		require.NoError(t, err)
		for _, c := range containers {
			all = append(all, c.(map[string]any)["image"].(string))
		}
	}
	return strings.Join(all, " ")
}

func TestInstallMakesNamespaceDefinitionAndRelease(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))

	ns, err := f.kube.CoreV1().Namespaces().Get(t.Context(), "sidestep", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, "privileged", ns.Labels["pod-security.kubernetes.io/enforce"], "or the node agents are refused")
	_, err = f.dynamic.Resource(crdResource).Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	r := f.last(t)
	assert.Equal(t, release.StatusDeployed, r.Info.Status)
	assert.Equal(t, "docker.io/sidestep/manager:v1.2.3 docker.io/sidestep/nodeagent:v1.2.3", images(t, r), "the images are of this program's version")
	assert.Equal(t, "1.2.3", r.Chart.Metadata.Version)
	assert.NotContains(t, rendered(t, r), "CustomResourceDefinition/"+interceptCRD, "helm would delete it with the release, and all intercepts with it")
}

func TestInstallTakesValues(t *testing.T) {
	f := newFixture(t)
	s := f.settings()
	s.Values = values.Options{Values: []string{"image.tag=dev,image.registry=localhost"}, StringValues: []string{"logLevel=debug"}}
	require.NoError(t, f.Install(t.Context(), s))
	assert.Equal(t, "localhost/sidestep/manager:dev localhost/sidestep/nodeagent:dev", images(t, f.last(t)))

	t.Run("and refuses those that the chart's schema refuses", func(t *testing.T) {
		f := newFixture(t)
		s := f.settings()
		s.Values = values.Options{Values: []string{"logLevel=shouting"}}
		err := f.Install(t.Context(), s)
		require.ErrorContains(t, err, "logLevel")
		f.assertEmpty(t)
	})
	t.Run("and says which file cannot be read", func(t *testing.T) {
		f := newFixture(t)
		s := f.settings()
		s.Values = values.Options{ValueFiles: []string{"no/such.yaml"}}
		assert.ErrorContains(t, f.Install(t.Context(), s), "no/such.yaml")
	})
}

// assertEmpty checks that nothing is left in the cluster.
func (f *fixture) assertEmpty(t *testing.T) {
	t.Helper()
	_, err := f.kube.CoreV1().Namespaces().Get(t.Context(), "sidestep", metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err), "the namespace is gone")
	_, err = f.dynamic.Resource(crdResource).Get(t.Context(), interceptCRD, metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err), "the definition is gone")
	_, err = f.releases.Last(releaseName)
	assert.ErrorIs(t, err, driver.ErrReleaseNotFound)
}

func TestAnInstallationThatFailsLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.client.build = func() error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "clusterroles"}, "sidestep-manager", errors.New("no"))
	}
	err := f.Install(t.Context(), f.settings())
	require.ErrorContains(t, err, "forbidden")
	f.assertEmpty(t)
}

func TestAnInstallationThatIsInterruptedLeavesNothing(t *testing.T) {
	for name, when := range map[string]func(f *fixture, cancel func()){
		"while objects are made":   func(f *fixture, cancel func()) { f.client.build = func() error { cancel(); return nil } },
		"while it waits for pods":  func(f *fixture, cancel func()) { f.pods(t, false); f.onStep("waiting", cancel) },
		"before anything was made": func(f *fixture, cancel func()) { f.onStep("creating namespace", cancel) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ctx, cancel := context.WithCancel(t.Context())
			when(f, cancel)
			s := f.settings()
			s.Timeout = 10 * time.Second
			require.ErrorIs(t, f.Install(ctx, s), context.Canceled)
			f.assertEmpty(t)
		})
	}
}

// onStep calls a function at the first step that begins so.
func (f *fixture) onStep(prefix string, do func()) {
	once := sync.OnceFunc(do)
	f.kube.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, s := range f.steps {
			if strings.HasPrefix(s, prefix) {
				once()
			}
		}
		return false, nil, nil
	})
}

// pods puts a manager and node agents into the cluster, as the chart would.
func (f *fixture) pods(t *testing.T, ready bool) {
	t.Helper()
	labels := map[string]string{"app.kubernetes.io/name": "sidestep"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager", Namespace: "sidestep", Labels: labels, Annotations: map[string]string{"meta.helm.sh/release-name": "sidestep"}}}
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-nodeagent", Namespace: "sidestep", Labels: labels}}
	ds.Status.DesiredNumberScheduled = 2
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager-0", Namespace: "sidestep", Labels: labels}}
	if ready {
		d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1}
		ds.Status = appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2}
	} else {
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
			Reason: "ImagePullBackOff", Message: `Back-off pulling image "docker.io/sidestep/manager:v1.2.3"`,
		}}}}
		_, err := f.kube.CoreV1().Events("sidestep").Create(t.Context(), &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "sidestep"}, Reason: "FailedCreate", Message: "pods are forbidden: violates PodSecurity",
			InvolvedObject: corev1.ObjectReference{Kind: "DaemonSet", Name: "sidestep-nodeagent"},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	_, err := f.kube.AppsV1().Deployments("sidestep").Create(t.Context(), d, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = f.kube.AppsV1().DaemonSets("sidestep").Create(t.Context(), ds, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = f.kube.CoreV1().Pods("sidestep").Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	// helm's client is a fake that deletes nothing, so the pods go when the release is uninstalled.
	gone := false
	f.kube.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, s := range f.steps {
			gone = gone || strings.HasPrefix(s, "uninstalling")
		}
		return gone, &corev1.PodList{}, nil
	})
}

func TestInstallWaitsAndSaysWhatIsWrongWithPods(t *testing.T) {
	f := newFixture(t)
	f.pods(t, true)
	require.NoError(t, f.Install(t.Context(), f.settings()))

	f = newFixture(t)
	f.pods(t, false)
	err := f.Install(t.Context(), f.settings())
	require.Error(t, err)
	assert.Equal(t, `installed, and after 200ms still waiting for sidestep-manager 0/1, sidestep-nodeagent 0/2:
    pod sidestep-manager-0: ImagePullBackOff: Back-off pulling image "docker.io/sidestep/manager:v1.2.3"
    DaemonSet sidestep-nodeagent: pods are forbidden: violates PodSecurity
— see 'kubectl get pods --namespace sidestep'; 'sidestep helm uninstall' removes what was installed`, strings.ReplaceAll(err.Error(), "`", "'"))
	assert.Equal(t, release.StatusDeployed, f.last(t).Info.Status, "it stays, to be looked at")
}

func TestInstallRefusesASecondTimeAndMendsAHalfOne(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))
	err := f.Install(t.Context(), f.settings())
	require.EqualError(t, err, "the traffic manager v1.2.3 is already installed in namespace sidestep — use `sidestep helm upgrade` to change it")

	r := f.last(t)
	r.Info.Status = release.StatusPendingInstall
	require.NoError(t, f.releases.Update(r))
	require.NoError(t, f.Install(t.Context(), f.settings()), "one that was killed half way is replaced")
	assert.Equal(t, release.StatusDeployed, f.last(t).Info.Status)
}

func TestInstallWithoutItsNamespaceWhenToldNotToMakeIt(t *testing.T) {
	f := newFixture(t)
	s := f.settings()
	s.CreateNamespace = false
	assert.EqualError(t, f.Install(t.Context(), s), "there is no namespace sidestep — create it, or use --create-namespace")
}

func TestWhatSomethingElseInstalledIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	_, err := f.kube.AppsV1().Deployments("sidestep").Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager", Namespace: "sidestep"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	for _, do := range []func(context.Context, Settings) error{f.Install, f.Upgrade, f.Uninstall} {
		assert.ErrorContains(t, do(t.Context(), f.settings()), "was not installed by helm")
	}
}

func TestUpgradeUpdatesTheDefinitionToo(t *testing.T) {
	f := newFixture(t)
	require.ErrorContains(t, f.Upgrade(t.Context(), f.settings()), "the traffic manager is not installed in namespace sidestep — run `sidestep helm install`")
	s := f.settings()
	s.Values = values.Options{Values: []string{"image.registry=localhost"}}
	require.NoError(t, f.Install(t.Context(), s))
	crds := f.dynamic.Resource(crdResource)
	old, err := crds.Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, unstructured.SetNestedField(old.Object, "Ancient", "spec", "names", "kind"))
	_, err = crds.Update(t.Context(), old, metav1.UpdateOptions{})
	require.NoError(t, err)

	f.version = "v1.3.0"
	require.NoError(t, f.Upgrade(t.Context(), f.settings()))
	now, err := crds.Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	kind, _, _ := unstructured.NestedString(now.Object, "spec", "names", "kind")
	assert.Equal(t, "Intercept", kind)
	assert.Equal(t, "localhost/sidestep/manager:v1.3.0 localhost/sidestep/nodeagent:v1.3.0", images(t, f.last(t)), "values are kept, the version is not")

	s = f.settings()
	s.ReuseValues, s.Values = true, values.Options{Values: []string{"logLevel=debug"}}
	require.NoError(t, f.Upgrade(t.Context(), s))
	assert.Contains(t, images(t, f.last(t)), "localhost/")
	s = f.settings()
	s.ResetValues = true
	require.NoError(t, f.Upgrade(t.Context(), s))
	assert.Contains(t, images(t, f.last(t)), "docker.io/")
}

func anIntercept(namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "sidestep.dev/v1alpha1", "kind": "Intercept", "metadata": map[string]any{"name": name, "namespace": namespace},
	}}
}

func TestUninstallKeepsIntercepts(t *testing.T) {
	f := newFixture(t, anIntercept("shop", "jane-orders"))
	require.ErrorContains(t, f.Uninstall(t.Context(), f.settings()), "is not installed")
	require.NoError(t, f.Install(t.Context(), f.settings()))
	f.pods(t, true)
	require.NoError(t, f.Uninstall(t.Context(), f.settings()))
	_, err := f.releases.Last(releaseName)
	assert.ErrorIs(t, err, driver.ErrReleaseNotFound)
	_, err = f.dynamic.Resource(interceptResource).Namespace("shop").Get(t.Context(), "jane-orders", metav1.GetOptions{})
	assert.NoError(t, err)
}

func TestUninstallSaysThatPodsDoNotEnd(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))
	_, err := f.kube.CoreV1().Pods("sidestep").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "sidestep-nodeagent-x", Namespace: "sidestep", Labels: map[string]string{"app.kubernetes.io/name": "sidestep"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	assert.ErrorContains(t, f.Uninstall(t.Context(), f.settings()), "1 pods have not ended after 200ms")
}

func TestRemoveEverything(t *testing.T) {
	f := newFixture(t, anIntercept("shop", "jane-orders"), anIntercept("default", "bob-orders"))
	require.NoError(t, f.Install(t.Context(), f.settings()))
	f.pods(t, true)
	require.NoError(t, f.RemoveEverything(t.Context(), f.settings()))
	f.assertEmpty(t)
	list, err := f.dynamic.Resource(interceptResource).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	assert.Empty(t, list.Items)
	require.NoError(t, f.RemoveEverything(t.Context(), f.settings()), "and a second time there is nothing to do")

	t.Run("but a namespace that somebody else has made", func(t *testing.T) {
		f := newFixture(t)
		_, err := f.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sidestep"}}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, f.Install(t.Context(), f.settings()))
		require.NoError(t, f.RemoveEverything(t.Context(), f.settings()))
		_, err = f.kube.CoreV1().Namespaces().Get(t.Context(), "sidestep", metav1.GetOptions{})
		assert.NoError(t, err)
	})
	t.Run("with the reason when a right is missing", func(t *testing.T) {
		f := newFixture(t)
		f.dynamic.PrependReactor("list", "intercepts", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "intercepts"}, "", errors.New("no"))
		})
		assert.ErrorContains(t, f.RemoveEverything(t.Context(), f.settings()), "needs the rights of a cluster administrator")
	})
}

func TestWorkloadNamesAreThoseThatNothingOwns(t *testing.T) {
	f := newFixture(t)
	yes := true
	for _, o := range []runtime.Object{
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop"}},
		&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "shop"}},
		&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "bare", Namespace: "shop"}},
		&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "orders-5d9c", Namespace: "shop", OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", Name: "orders", Controller: &yes}}}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere", Namespace: "default"}},
	} {
		gvks, _, err := scheme.Scheme.ObjectKinds(o)
		require.NoError(t, err)
		require.NotEmpty(t, gvks)
		require.NoError(t, f.kube.Tracker().Add(o))
	}
	names, err := f.WorkloadNames(t.Context(), "shop")
	require.NoError(t, err)
	assert.Equal(t, []string{"bare", "db", "orders"}, names)
}
