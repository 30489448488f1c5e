// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"

	"sidestep.dev/sidestep/internal/rollout"
)

func TestInstallMakesNamespaceDefinitionAndRelease(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))

	ns, err := f.kube.CoreV1().Namespaces().Get(t.Context(), "sidestep", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, "privileged", ns.Labels["pod-security.kubernetes.io/enforce"],
		"or the node agents are refused")
	_, err = f.dynamic.Resource(crdResource).Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	r := f.last(t)
	assert.Equal(t, release.StatusDeployed, r.Info.Status)
	assert.Equal(t, "docker.io/sidestep/manager:v1.2.3 docker.io/sidestep/nodeagent:v1.2.3",
		images(t, r), "the images are of this program's version")
	assert.Equal(t, "1.2.3", r.Chart.Metadata.Version)
	assert.NotContains(t, rendered(t, r), "CustomResourceDefinition/"+interceptCRD,
		"helm would delete it with the release, and all intercepts with it")
}

func TestInstallTakesValues(t *testing.T) {
	f := newFixture(t)
	s := f.settings()
	s.Values = values.Options{Values: []string{"image.tag=dev,image.registry=localhost"},
		StringValues: []string{"logLevel=debug"}}
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
	t.Run("and needs a registry, for there is none that is ours", func(t *testing.T) {
		f := newFixture(t)
		s := f.settings()
		s.Values = values.Options{}
		require.ErrorContains(t, f.Install(t.Context(), s), "--set image.registry=registry.example.com/you")
		f.assertEmpty(t)
	})
	t.Run("and says which file cannot be read", func(t *testing.T) {
		f := newFixture(t)
		s := f.settings()
		s.Values = values.Options{ValueFiles: []string{"no/such.yaml"}}
		assert.ErrorContains(t, f.Install(t.Context(), s), "no/such.yaml")
	})
}

func TestAnInstallationThatFailsLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.client.build = func() error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "clusterroles"},
			"sidestep-manager", errors.New("no"))
	}
	err := f.Install(t.Context(), f.settings())
	require.ErrorContains(t, err, "forbidden")
	f.assertEmpty(t)
}

func TestAnInstallationThatIsInterruptedLeavesNothing(t *testing.T) {
	for name, when := range map[string]func(f *fixture, cancel func()){
		"while objects are made": func(f *fixture,
			cancel func()) {
			f.client.build = func() error { cancel(); return nil }
		},
		"while it waits for pods": func(f *fixture,
			cancel func()) {
			f.pods(t, false)
			f.onStep("waiting", cancel)
		},
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

	f = newFixture(t)
	f.pods(t, false)
	f.stuckAfter = 20 * time.Millisecond
	s := f.settings()
	s.Timeout = time.Hour
	err = f.Install(t.Context(), s)
	require.ErrorContains(t, err, "installed, and cannot get ready: sidestep-manager 0/1, sidestep-nodeagent 0/2:\n"+
		"    pod sidestep-manager-0: ImagePullBackOff: Back-off pulling image")
	assert.Contains(t, f.steps, "waiting for sidestep-manager 0/1, sidestep-nodeagent 0/2: pod "+
		"sidestep-manager-0: "+
		`ImagePullBackOff: Back-off pulling image "docker.io/sidestep/manager:v1.2.3"`)
}

func TestInstallRefusesASecondTimeAndMendsAHalfOne(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))
	err := f.Install(t.Context(), f.settings())
	require.EqualError(t, err,
		"the traffic manager v1.2.3 is already installed in namespace sidestep — use `sidestep helm upgrade` to "+
			"change it")

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
	assert.EqualError(t, f.Install(t.Context(), s),
		"there is no namespace sidestep — create it, or use --create-namespace")
}

func TestWhatSomethingElseInstalledIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	_, err := f.kube.AppsV1().Deployments("sidestep").Create(t.Context(),
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "sidestep-manager",
			Namespace: "sidestep"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	for _, do := range []func(context.Context, Settings) error{f.Install, f.Upgrade, f.Uninstall} {
		assert.ErrorContains(t, do(t.Context(), f.settings()), "was not installed by helm")
	}
}

func TestUpgradeUpdatesTheDefinitionToo(t *testing.T) {
	f := newFixture(t)
	require.ErrorContains(t, f.Upgrade(t.Context(), f.settings()),
		"the traffic manager is not installed in namespace sidestep — run `sidestep helm install`")
	s := f.settings()
	s.Values = values.Options{Values: []string{"image.registry=localhost"}}
	require.NoError(t, f.Install(t.Context(), s))
	crds := f.dynamic.Resource(crdResource)
	old, err := crds.Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, unstructured.SetNestedField(old.Object, "Ancient", "spec", "names", "kind"))
	old.SetAnnotations(map[string]string{"theirs": "stays"})
	_, err = crds.Update(t.Context(), old, metav1.UpdateOptions{})
	require.NoError(t, err)

	f.version = "v1.3.0"
	plain := f.settings()
	plain.Values = values.Options{}
	require.NoError(t, f.Upgrade(t.Context(), plain))
	now, err := crds.Get(t.Context(), interceptCRD, metav1.GetOptions{})
	require.NoError(t, err)
	kind, _, _ := unstructured.NestedString(now.Object, "spec", "names", "kind")
	assert.Equal(t, "Intercept", kind)
	assert.Equal(t, "stays", now.GetAnnotations()["theirs"])
	definitions := 2 // of intercepts and of logins
	assert.Equal(t, slices.Repeat([]string{"sidestep"}, 2*definitions), f.managers)
	assert.Equal(t, "localhost/sidestep/manager:v1.3.0 localhost/sidestep/nodeagent:v1.3.0",
		images(t, f.last(t)), "values are kept, the version is not")

	s = f.settings()
	s.ReuseValues, s.Values = true, values.Options{Values: []string{"logLevel=debug"}}
	require.NoError(t, f.Upgrade(t.Context(), s))
	assert.Contains(t, images(t, f.last(t)), "localhost/")
	s = f.settings()
	s.ResetValues = true
	require.NoError(t, f.Upgrade(t.Context(), s))
	assert.Contains(t, images(t, f.last(t)), "docker.io/")
}

func TestUninstallKeepsIntercepts(t *testing.T) {
	f := newFixture(t, anIntercept("shop", "jane-orders"))
	require.ErrorContains(t, f.Uninstall(t.Context(), f.settings()), "is not installed")
	require.NoError(t, f.Install(t.Context(), f.settings()))
	f.pods(t, true)
	require.NoError(t, f.Uninstall(t.Context(), f.settings()))
	_, err := f.releases.Last(releaseName)
	assert.ErrorIs(t, err, driver.ErrReleaseNotFound)
	_, err = f.dynamic.Resource(interceptResource).Namespace("shop").Get(t.Context(), "jane-orders",
		metav1.GetOptions{})
	assert.NoError(t, err)
}

func TestUninstallSaysThatPodsDoNotEnd(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, f.Install(t.Context(), f.settings()))
	_, err := f.kube.CoreV1().Pods("sidestep").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "sidestep-nodeagent-x", Namespace: "sidestep",
		Labels: map[string]string{"app.kubernetes.io/name": "sidestep"},
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
	require.NoError(t, f.RemoveEverything(t.Context(), f.settings()),
		"and a second time there is nothing to do")

	t.Run("but a namespace that somebody else has made", func(t *testing.T) {
		f := newFixture(t)
		_, err := f.kube.CoreV1().Namespaces().Create(t.Context(),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sidestep"}}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, f.Install(t.Context(), f.settings()))
		require.NoError(t, f.RemoveEverything(t.Context(), f.settings()))
		_, err = f.kube.CoreV1().Namespaces().Get(t.Context(), "sidestep", metav1.GetOptions{})
		assert.NoError(t, err)
	})
	t.Run("with the reason when a right is missing", func(t *testing.T) {
		f := newFixture(t)
		f.dynamic.PrependReactor("list", "intercepts",
			func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "intercepts"}, "",
					errors.New("no"))
			})
		assert.ErrorContains(t, f.RemoveEverything(t.Context(), f.settings()),
			"needs the rights of a cluster administrator")
	})
}

func TestWorkloadNamesAreThoseThatNothingOwns(t *testing.T) {
	f := newFixture(t)
	yes := true
	meta := func(name string, owner ...string) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Name: name, Namespace: "shop"}
		if len(owner) > 0 {
			m.OwnerReferences = []metav1.OwnerReference{{Kind: owner[0], Name: owner[1], Controller: &yes}}
		}
		return m
	}
	for _, o := range []runtime.Object{
		&appsv1.Deployment{ObjectMeta: meta("orders")}, &appsv1.StatefulSet{ObjectMeta: meta("db")},
		&appsv1.DaemonSet{ObjectMeta: meta("log")},
		&appsv1.ReplicaSet{ObjectMeta: meta("bare")},
		&appsv1.ReplicaSet{ObjectMeta: meta("orders-5d9c", "Deployment", "orders")},
		&corev1.Pod{ObjectMeta: meta("alone")}, &corev1.Pod{ObjectMeta: meta("db-0", "StatefulSet", "db")},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere", Namespace: "default"}},
	} {
		gvks, _, err := scheme.Scheme.ObjectKinds(o)
		require.NoError(t, err)
		require.NotEmpty(t, gvks)
		require.NoError(t, f.kube.Tracker().Add(o))
	}
	names, err := f.WorkloadNames(t.Context(), "shop")
	require.NoError(t, err)
	assert.Equal(t, []string{"alone", "bare", "db", "log", "orders"}, names)

	echo := rollout.Object()
	echo.SetNamespace("shop")
	echo.SetName("echo")
	require.NoError(t, unstructured.SetNestedMap(echo.Object, map[string]any{
		"spec": map[string]any{"containers": []any{map[string]any{"name": "app"}}},
	}, "spec", "template"))
	require.NoError(t, f.dynamic.Tracker().Create(rollouts, echo, "shop"))
	names, err = f.WorkloadNames(t.Context(), "shop")
	require.NoError(t, err)
	assert.Equal(t, []string{"alone", "bare", "db", "echo", "log", "orders"}, names)
	parts, err := f.WorkloadParts(t.Context(), "shop", "echo")
	require.NoError(t, err)
	assert.Equal(t, []string{"app"}, parts.Containers)

	f.kube.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no"))
	})
	names, err = f.WorkloadNames(t.Context(), "shop")
	require.NoError(t, err, "what may not be read is left out")
	assert.NotContains(t, names, "alone")
}
