// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
)

// real is a manager with its own rights at a real API server, and an administrator there.
func real(t *testing.T) (*kube, *running, *rest.Config) {
	t.Helper()
	admin, rights := apiServer(t)
	return administratorOf(t, admin), startReal(t, rights), rights
}

func administrator(t *testing.T) *kube {
	t.Helper()
	admin, _ := apiServer(t)
	return administratorOf(t, admin)
}

func administratorOf(t *testing.T, config *rest.Config) *kube {
	t.Helper()
	c, err := client.NewWithWatch(config, client.Options{Scheme: Scheme()})
	require.NoError(t, err)
	return &kube{WithWatch: c}
}

func startReal(t *testing.T, rights *rest.Config) *running {
	t.Helper()
	c, err := NewClient(rights)
	require.NoError(t, err)
	m := startWith(t, c)
	m.ready(t)
	return m
}

// realAgent returns a node agent with a token such as the kubelet mounts.
func (r *running) realAgent(t *testing.T, k *kube, node string) *nodeAgent {
	t.Helper()
	return r.agentWith(t, node, k.token(t, "sidestep-nodeagent", node))
}

// podOf creates a pod as the controller of its owner does. It runs nowhere yet. An owner of ""
// means none.
func (k *kube) podOf(t *testing.T, kind string, owner client.Object, name, node string,
	labels map[string]string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: objectMeta(name), Spec: template().Spec}
	p.Labels, p.Spec.NodeName = labels, node
	if kind != "" {
		p.OwnerReferences = ownedBy(kind, owner)
	}
	require.NoError(t, k.Create(t.Context(), p))
	return p
}

// asksFor makes an intercept of every connection to a workload, called like it.
func asksFor(kind, name string) *v1alpha1.Intercept {
	ic := asks("alice", "http", "tcp")
	ic.Name = name
	ic.Spec.Workload = v1alpha1.WorkloadReference{Kind: kind, Name: name}
	return ic
}

// service leads to pods with the labels, at port "web".
func (k *kube) service(t *testing.T, name string, labels map[string]string) *corev1.Service {
	t.Helper()
	s := &corev1.Service{ObjectMeta: objectMeta(name), Spec: corev1.ServiceSpec{
		Selector: labels, Ports: []corev1.ServicePort{{Name: "http", Port: 80,
			TargetPort: intstr.FromString("web")}},
	}}
	require.NoError(t, k.Create(t.Context(), s))
	return s
}

func labelled(labels map[string]string) corev1.PodTemplateSpec {
	t := template()
	t.Labels = labels
	return t
}

func TestWorkloadsOfEveryKind(t *testing.T) {
	k, m, rights := real(t)
	a := m.realAgent(t, k, "node-1")
	m.laptop(t, "alice", 0)

	t.Run("a DaemonSet", func(t *testing.T) {
		labels := map[string]string{"app": "log"}
		ds := &appsv1.DaemonSet{ObjectMeta: objectMeta("log"),
			Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: labelled(labels)}}
		require.NoError(t, k.Create(t.Context(), ds))
		k.service(t, "log", labels)
		k.create(t, asksFor("DaemonSet", "log"))
		assert.Equal(t, "no pod of DaemonSet log is ready",
			k.until(t, "log", v1alpha1.StateNoPods).Status.Message)
		k.run(t, k.podOf(t, "DaemonSet", ds, "log-x", "node-1", labels))
		assert.Equal(t, "log", k.until(t, "log", v1alpha1.StateActive).Status.Service)
		a.has(t, "log-x:8080=log")
		require.NoError(t, k.Delete(t.Context(), ds))
		assert.Equal(t, `there is no DaemonSet "log" in namespace shop`,
			k.until(t, "log", v1alpha1.StateInvalid).Status.Message)
		a.has(t)
	})
	t.Run("a CronJob, whose Jobs come and go, and a Job", func(t *testing.T) {
		labels := map[string]string{"app": "report"}
		spec := batchv1.JobSpec{Template: labelled(labels)}
		spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
		cron := &batchv1.CronJob{ObjectMeta: objectMeta("report"), Spec: batchv1.CronJobSpec{Schedule: "0 0 1 1 *",
			JobTemplate: batchv1.JobTemplateSpec{Spec: spec}}}
		require.NoError(t, k.Create(t.Context(), cron))
		k.service(t, "report", labels)
		k.create(t, asksFor("CronJob", "report"))
		k.until(t, "report", v1alpha1.StateNoPods)
		for _, name := range []string{"report-1", "report-2"} {
			job := &batchv1.Job{ObjectMeta: objectMeta(name), Spec: spec}
			job.OwnerReferences = ownedBy("CronJob", cron)
			require.NoError(t, k.Create(t.Context(), job))
			p := k.podOf(t, "Job", job, name+"-x", "node-1", labels)
			k.run(t, p)
			assert.Equal(t, "1/1", k.until(t, "report", v1alpha1.StateActive).Status.Coverage)
			a.has(t, name+"-x:8080=report")
			require.NoError(t, k.Delete(t.Context(), p, client.GracePeriodSeconds(0)))
			k.until(t, "report", v1alpha1.StateNoPods)
		}
		require.NoError(t, k.Delete(t.Context(), cron))
		k.until(t, "report", v1alpha1.StateInvalid)
		alone := &batchv1.Job{ObjectMeta: objectMeta("import"), Spec: spec}
		require.NoError(t, k.Create(t.Context(), alone))
		k.create(t, asksFor("Job", "import"))
		p := k.podOf(t, "Job", alone, "import-x", "node-1", labels)
		k.run(t, p)
		k.until(t, "import", v1alpha1.StateActive)
		a.has(t, "import-x:8080=import")
		require.NoError(t, k.Delete(t.Context(), alone, client.PropagationPolicy(metav1.DeletePropagationBackground)))
		k.until(t, "import", v1alpha1.StateInvalid)
		a.has(t)
	})
	t.Run("a Pod that nobody owns, by its container port, and its successor", func(t *testing.T) {
		ic := asksFor("Pod", "alone")
		ic.Spec.Port = "web"
		k.create(t, ic)
		assert.Equal(t, `there is no Pod "alone" in namespace shop`,
			k.until(t, "alone", v1alpha1.StateInvalid).Status.Message)
		for range 2 {
			p := k.podOf(t, "", nil, "alone", "node-1", nil)
			assert.Equal(t, "Pod alone is not ready", k.until(t, "alone", v1alpha1.StateNoPods).Status.Message)
			k.run(t, p)
			assert.Equal(t, "1/1", k.until(t, "alone", v1alpha1.StateActive).Status.Coverage)
			a.has(t, "alone:8080=alone")
			require.NoError(t, k.Delete(t.Context(), p, client.GracePeriodSeconds(0)))
			k.until(t, "alone", v1alpha1.StateInvalid)
		}
	})
	t.Run("a Pod whose labels bring it a service", func(t *testing.T) {
		k.service(t, "lone", map[string]string{"app": "lone"})
		p := k.podOf(t, "", nil, "lone", "node-1", nil)
		k.run(t, p)
		k.create(t, asksFor("Pod", "lone"))
		assert.Contains(t, k.until(t, "lone", v1alpha1.StateInvalid).Status.Message,
			"Pod lone, which has no service, has no port http")
		p.Labels = map[string]string{"app": "lone"}
		require.NoError(t, k.Update(t.Context(), p))
		assert.Equal(t, "lone", k.until(t, "lone", v1alpha1.StateActive).Status.Service)
		require.NoError(t, k.Delete(t.Context(), p, client.GracePeriodSeconds(0)))
	})
	t.Run("Argo's Rollout, whose kind comes and goes", func(t *testing.T) { rollouts(t, k, m, a, rights) })
}

// definition is as much of Argo's as there needs to be.
func definition(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal([]byte(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {kind: Rollout, listKind: RolloutList, plural: rollouts, singular: rollout, shortNames: [ro]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`), &u.Object))
	return u
}

// echo makes Rollout echo, with a ReplicaSet and a ready pod for a revision.
func (k *kube) echo(t *testing.T, revision string) *unstructured.Unstructured {
	t.Helper()
	r := rollout.Object()
	r.SetNamespace(ns)
	r.SetName("echo")
	require.NoError(t, yaml.Unmarshal([]byte(`spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: app, image: echo, ports: [{name: web, containerPort: 8080}]}]}
`), &r.Object))
	err := k.Create(t.Context(), r)
	if apierrors.IsAlreadyExists(err) {
		err = k.Get(t.Context(), client.ObjectKeyFromObject(r), r)
	}
	require.NoError(t, err)
	labels := map[string]string{"app": "echo", "rollouts-pod-template-hash": revision}
	rs := &appsv1.ReplicaSet{ObjectMeta: objectMeta("echo-" + revision), Spec: appsv1.ReplicaSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: labelled(labels),
	}}
	rs.OwnerReferences = ownedBy(rollout.Kind, r)
	rs.OwnerReferences[0].APIVersion = rollout.GroupVersion.String()
	require.NoError(t, k.Create(t.Context(), rs))
	k.run(t, k.podOf(t, "ReplicaSet", rs, "echo-"+revision+"-a", "node-1", labels))
	return r
}

func rollouts(t *testing.T, k *kube, m *running, a *nodeAgent, rights *rest.Config) {
	k.create(t, asksFor(rollout.Kind, "echo"))
	assert.Equal(t, `there is no Rollout "echo" in namespace shop`,
		k.until(t, "echo", v1alpha1.StateInvalid).Status.Message)
	canary := k.service(t, "echo-canary", map[string]string{"app": "echo", "rollouts-pod-template-hash": "1"})
	k.service(t, "echo-stable", map[string]string{"app": "echo", "rollouts-pod-template-hash": "1"})

	crd := definition(t)
	require.NoError(t, k.Create(t.Context(), crd))
	require.Eventually(t, func() bool {
		return k.List(t.Context(), rollout.ListOf(), client.InNamespace(ns)) == nil
	}, patient, often)
	k.echo(t, "1")
	require.Eventually(t, func() bool {
		return k.intercept(t, "echo").Status.Message == "2 services select the pods of Rollout echo: echo-canary, echo-stable — use --service to choose one"
	}, patient, often)
	ic := k.intercept(t, "echo")
	ic.Spec.Service = "echo-stable"
	require.NoError(t, k.Update(t.Context(), ic))
	assert.Equal(t, "echo-stable", k.until(t, "echo", v1alpha1.StateActive).Status.Service)
	a.has(t, "echo-1-a:8080=echo")

	// The next revision, and the canary service led to it: each revision by name has its service by
	// itself.
	k.echo(t, "2")
	require.Eventually(t, func() bool { return k.intercept(t, "echo").Status.Coverage == "2/2" },
		patient, often)
	canary.Spec.Selector["rollouts-pod-template-hash"] = "2"
	require.NoError(t, k.Update(t.Context(), canary))
	one := asksFor("ReplicaSet", "echo-2")
	k.create(t, one)
	st := k.until(t, "echo-2", v1alpha1.StateConflict).Status
	assert.Equal(t, `port http of ReplicaSet echo-2 is intercepted by alice@laptop (intercept "orders") by way of Rollout echo`, st.Message)
	assert.Equal(t, "echo-canary", st.Service)
	require.NoError(t, k.Delete(t.Context(), one))

	// Another manager has read the Rollouts before it tells node agents anything.
	m.end()
	m = startReal(t, rights)
	next := m.realAgent(t, k, "node-1")
	m.laptop(t, "alice", 0)
	next.has(t, "echo-1-a:8080=echo", "echo-2-a:8080=echo")
	next.mu.Lock()
	for _, assignment := range next.all {
		assert.Len(t, describe(assignment), 2, "never told to let go")
	}
	next.mu.Unlock()
	k.until(t, "echo", v1alpha1.StateActive)

	require.NoError(t, k.Delete(t.Context(), crd))
	assert.Equal(t, `there is no Rollout "echo" in namespace shop`,
		k.until(t, "echo", v1alpha1.StateInvalid).Status.Message)
	next.has(t)
	require.Eventually(t, func() bool { return k.Create(t.Context(), definition(t)) == nil }, patient, often)
	require.Eventually(t, func() bool { return k.List(t.Context(), rollout.ListOf()) == nil }, patient, often)
	k.echo(t, "3")
	require.Eventually(t, func() bool {
		return k.intercept(t, "echo").Status.Message == `service "echo-stable" does not select the pods of Rollout echo; no service selects the pods of Rollout echo: leave out --service to intercept a port of the container`
	}, patient, often)
}
