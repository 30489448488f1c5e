// SPDX-License-Identifier: Apache-2.0

package install

import (
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
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubernetesfake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/deploy"
)

// helmClient is the client with which helm creates objects. It creates none, and calls a function
// instead.
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
	managers []string // of fields of definitions
}

func newFixture(t *testing.T, objects ...runtime.Object) *fixture {
	t.Helper()
	chart, err := fs.Sub(deploy.Chart, "chart")
	require.NoError(t, err)
	f := &fixture{kube: kubernetesfake.NewClientset(),
		client: &helmClient{PrintingKubeClient: kubefake.PrintingKubeClient{Out: io.Discard,
			LogOutput: io.Discard}}}
	f.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{
			crdResource: "CustomResourceDefinitionList", interceptResource: "InterceptList",
			rollouts: "RolloutList",
		}, objects...)
	f.dynamic.PrependReactor("patch", crdResource.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		return f.apply(t, a.(clienttesting.PatchActionImpl))
	})
	memory := driver.NewMemory()
	memory.SetNamespace("sidestep")
	f.releases = storage.Init(memory)
	f.Cluster = &Cluster{
		namespace: "sidestep", version: "v1.2.3", program: "sidestep", chart: chart,
		server: "https://10.0.0.1:6443", kube: f.kube, dynamic: f.dynamic,
		poll: time.Millisecond, stuckAfter: time.Hour, settle: time.Millisecond,
		helm: func() (*action.Configuration, error) {
			capabilities := chartutil.DefaultCapabilities.Copy()
			capabilities.KubeVersion.Version = "v1.34.0"
			return &action.Configuration{Releases: f.releases, KubeClient: f.client,
				Capabilities: capabilities, Log: func(string, ...any) {}}, nil
		},
	}
	return f
}

// apply does what the API server does with an applied definition, which the fake cannot: it creates
// or changes it, records the field manager, and establishes it.
func (f *fixture) apply(t *testing.T, a clienttesting.PatchActionImpl) (bool, runtime.Object, error) {
	require.Equal(t, types.ApplyPatchType, a.GetPatchType())
	f.managers = append(f.managers, a.PatchOptions.FieldManager)
	crd := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal(a.GetPatch(), &crd.Object))
	require.NoError(t, unstructured.SetNestedSlice(crd.Object,
		[]any{map[string]any{"type": "Established", "status": "True"}}, "status", "conditions"))
	there, err := f.dynamic.Tracker().Get(crdResource, "", a.GetName())
	if apierrors.IsNotFound(err) {
		return true, crd, f.dynamic.Tracker().Create(crdResource, crd, "")
	}
	merged := there.(*unstructured.Unstructured).DeepCopy()
	for key, value := range crd.Object {
		if key != "metadata" {
			merged.Object[key] = value
		}
	}
	return true, merged, f.dynamic.Tracker().Update(crdResource, merged, "")
}

func (f *fixture) settings() Settings {
	return Settings{CreateNamespace: true, Wait: true, Timeout: 200 * time.Millisecond,
		Values: values.Options{Values: []string{"image.registry=docker.io"}},
		Progress: func(s string) {
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
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager",
		Namespace: "sidestep", Labels: labels,
		Annotations: map[string]string{"meta.helm.sh/release-name": "sidestep"}}}
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-nodeagent",
		Namespace: "sidestep", Labels: labels}}
	ds.Status.DesiredNumberScheduled = 2
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager-0", Namespace: "sidestep",
		Labels: labels}}
	if ready {
		d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1}
		ds.Status = appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2,
			NumberAvailable: 2}
	} else {
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
			Reason: "ImagePullBackOff", Message: `Back-off pulling image "docker.io/sidestep/manager:v1.2.3"`,
		}}}}
		_, err := f.kube.CoreV1().Events("sidestep").Create(t.Context(), &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "sidestep"}, Reason: "FailedCreate",
			Message:        "pods are forbidden: violates PodSecurity",
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

func anIntercept(namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "sidestep.dev/v1alpha1", "kind": "Intercept",
		"metadata": map[string]any{"name": name, "namespace": namespace},
	}}
}
