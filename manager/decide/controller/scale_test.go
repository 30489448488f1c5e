// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/changes"
	"sidestep.dev/sidestep/manager/decide/plan"
)

const (
	nodes      = 1000
	developers = 10 // intercepts of each workload
	replicas   = 3
)

type everybody struct{}

func (everybody) Changes() *changes.Set[string] { return changes.NewSet[string]() }
func (everybody) Connected(string) bool         { return true }
func (everybody) Wiretapper(hash string) string { return hash }

// large is a controller of a large cluster, with its node agents attached.
func large(tb testing.TB, workloads int) (*Controller, []*plan.Stream) {
	tb.Helper()
	scheme := runtime.NewScheme()
	require.NoError(tb, v1alpha1.AddToScheme(scheme))
	shares := plan.New()
	c, err := New(Config{
		Client: fake.NewClientBuilder().WithScheme(scheme).Build(), Plan: shares, Sessions: everybody{},
		Log:   slog.New(slog.DiscardHandler),
		Grace: time.Hour, Metrics: prometheus.NewRegistry(),
	})
	require.NoError(tb, err)
	add := func(store interface{ Add(any) error }, obj any) { require.NoError(tb, store.Add(obj)) }
	for w := range workloads {
		ns, name := fmt.Sprintf("ns-%d", w/50), fmt.Sprintf("app-%d", w)
		meta := metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("d-" + name)}
		template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app",
				Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}},
		}}
		add(c.informers.deployments.GetIndexer(),
			&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}})
		rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name + "-1",
			UID: types.UID("rs-" + name)}, Spec: appsv1.ReplicaSetSpec{Template: template}}
		rs.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(
			&metav1.ObjectMeta{Name: name, UID: meta.UID}, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
		add(c.informers.replicaSets.GetIndexer(), rs)
		add(c.informers.services.GetIndexer(),
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{
				Selector: template.Labels,
				Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
			}})
		for r := range replicas {
			add(c.informers.pods.GetIndexer(), largePod(rs, w*replicas+r))
		}
		for d := range developers {
			ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: ns,
				Name: fmt.Sprintf("%s-%d", name, d), UID: types.UID(fmt.Sprintf("ic-%s-%d", name, d)),
				Generation: 1}}
			value := fmt.Sprint(d)
			ic.Spec = v1alpha1.InterceptSpec{
				Name: name, Workload: v1alpha1.WorkloadReference{Kind: "Deployment", Name: name},
				Mechanism: v1alpha1.MechanismHTTP,
				HTTP:      &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Value: &value}}},
				Client:    v1alpha1.ClientReference{Holder: "dev@laptop", KeyHash: value},
			}
			add(c.informers.intercepts.GetIndexer(), ic)
		}
	}
	var streams []*plan.Stream
	for n := range nodes {
		streams = append(streams, shares.Attach(fmt.Sprintf("node-%d", n), plan.Birth{}))
	}
	return c, streams
}

func largePod(rs *appsv1.ReplicaSet, number int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: rs.Namespace,
		Name: fmt.Sprintf("%s-%d", rs.Name, number), UID: types.UID(fmt.Sprintf("pod-%d", number))}}
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(
		&metav1.ObjectMeta{Name: rs.Name, UID: rs.UID}, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	p.Spec = *rs.Spec.Template.Spec.DeepCopy()
	p.Spec.NodeName = fmt.Sprintf("node-%d", number%nodes)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", HostIP: "192.0.2.1",
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

// settle reconciles until nothing is left to do, and says how many times it did.
func (c *Controller) settle() int {
	n := 0
	for ; c.queue.Len() > 0; n++ {
		k, _ := c.queue.Get()
		c.reconcile(k)
		c.queue.Done(k)
	}
	return n
}

func woken(streams []*plan.Stream) int {
	n := 0
	for _, s := range streams {
		select {
		case <-s.Wake():
			s.Next()
			n++
		default:
		}
	}
	return n
}

func TestAnEventCostsNoMoreThanWhatItConcerns(t *testing.T) {
	const workloads = 350 // their pods are on every node
	c, streams := large(t, workloads)
	began := time.Now()
	c.resolveAll()
	t.Logf("%d intercepts resolved in %s", len(c.entries), time.Since(began))
	assert.Equal(t, workloads*developers, len(c.entries))
	assert.Equal(t, nodes, woken(streams))
	c.settle()

	old := c.informers.PodsOf("rs-app-7")[0]
	changed := old.DeepCopy()
	changed.Status.Conditions[0].Status = corev1.ConditionFalse
	require.NoError(t, c.informers.pods.GetIndexer().Update(changed))
	c.podChanged(old, changed)
	assert.Equal(t, developers, c.settle(), "the intercepts of the pod's workload")
	assert.Zero(t, woken(streams), "pods that are not ready are steered all the same")

	require.NoError(t, c.informers.pods.GetIndexer().Delete(changed))
	c.podChanged(changed, nil)
	assert.Equal(t, developers, c.settle())
	assert.Equal(t, 1, woken(streams), "the pod's node")

	c.podChanged(changed, changed.DeepCopy())
	assert.Zero(t, c.settle(), "a change of nothing that matters")
	c.sessionChanged("3")
	assert.Equal(t, workloads, c.settle(), "the intercepts of that laptop")

	svc := c.informers.Services("ns-0")[0]
	moved := svc.DeepCopy()
	moved.Spec.Ports[0].Port = 81
	c.serviceChanged(svc, moved)
	assert.Equal(t, developers, c.settle(), "the intercepts of the workload that the service selects")
}

func BenchmarkPodEventInALargeCluster(b *testing.B) {
	c, _ := large(b, 1000)
	c.resolveAll()
	c.settle()
	pod := c.informers.PodsOf("rs-app-7")[0]
	ready := false
	for b.Loop() {
		next := pod.DeepCopy()
		status := corev1.ConditionFalse
		if ready = !ready; ready {
			status = corev1.ConditionTrue
		}
		next.Status.Conditions[0].Status = status
		if err := c.informers.pods.GetIndexer().Update(next); err != nil {
			b.Fatal(err)
		}
		c.podChanged(pod, next)
		c.settle()
		pod = next
	}
}
