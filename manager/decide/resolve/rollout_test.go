// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

const hash = "rollouts-pod-template-hash"

// revision is a ReplicaSet of Rollout echo as Argo makes it, with one pod.
func (c *cluster) revision(of string) {
	t := template(app)
	t.Labels = map[string]string{"app": "orders", hash: of}
	name := "echo-" + of
	rs := &appsv1.ReplicaSet{ObjectMeta: meta(name, "Rollout", "echo"),
		Spec: appsv1.ReplicaSetSpec{Template: t}}
	rs.CreationTimestamp = metav1.NewTime(time.Unix(int64(len(c.replicaSets)), 0))
	c.replicaSets[name] = rs
	p := pod(name+"-a", "ReplicaSet", name, t.Spec)
	p.Labels = t.Labels
	c.pods = append(c.pods, p)
}

// leadingTo is a service as Argo leaves it: it selects the pods of one revision.
func leadingTo(name, of string) *corev1.Service {
	s := service(name, http)
	s.Spec.Selector = map[string]string{"app": "orders", hash: of}
	return s
}

func echo(template *corev1.PodTemplateSpec, services ...*corev1.Service) *cluster {
	return &cluster{
		rollouts: map[string]*rollout.Rollout{"echo": {ObjectMeta: meta("echo", "", ""),
			Template: template}},
		replicaSets: map[string]*appsv1.ReplicaSet{}, services: services,
	}
}

func TestServicesOfArgoRollouts(t *testing.T) {
	plain := template(app)
	canary, stable := leadingTo("echo-canary", "new"), leadingTo("echo-stable", "old")
	promoted := leadingTo("echo-canary", "old")
	root := service("echo", http)
	for _, c := range []struct {
		name     string
		services []*corev1.Service
		ask      []func(*v1alpha1.InterceptSpec)
		service  string
		pods     []string
		says     string
	}{
		{"a revision has the one service that leads to it", []*corev1.Service{canary, stable},
			ask(withWorkload("ReplicaSet", "echo-new")), "echo-canary", []string{"echo-new-a"}, ""},
		{"a revision that both lead to needs --service", []*corev1.Service{promoted, stable},
			ask(withWorkload("ReplicaSet", "echo-old")), "", nil,
			"2 services select the pods of ReplicaSet echo-old: echo-canary, echo-stable — use --service to choose one"},
		{"a revision with --service", []*corev1.Service{promoted, stable},
			ask(withWorkload("ReplicaSet", "echo-old"), withService("echo-stable")), "echo-stable",
			[]string{"echo-old-a"}, ""},
		{"the Rollout has the service that leads to all its pods", []*corev1.Service{canary, root, stable},
			ask(withWorkload("Rollout", "echo")), "echo", []string{"echo-new-a", "echo-old-a"}, ""},
		{"the Rollout with services for its revisions only needs --service",
			[]*corev1.Service{canary, stable}, ask(withWorkload("Rollout", "echo")), "", nil,
			"2 services select the pods of Rollout echo: echo-canary, echo-stable — use --service to choose one"},
		{"the Rollout with --service, though another leads to all", []*corev1.Service{canary, root, stable},
			ask(withWorkload("Rollout", "echo"), withService("echo-stable")), "echo-stable",
			[]string{"echo-new-a", "echo-old-a"}, ""},
		{"the Rollout with a service of others", []*corev1.Service{stable, other("stock")},
			ask(withWorkload("Rollout", "echo"), withService("stock")), "", nil,
			`service "stock" does not select the pods of Rollout echo; services of Rollout echo: echo-stable`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := echo(&plain, c.services...)
			cl.revision("old")
			cl.revision("new")
			res, err := resolve.Intercept(cl, intercept(c.ask...))
			if c.says != "" {
				require.EqualError(t, err, c.says)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.service, res.Service)
			assert.Equal(t, c.pods, podNames(res))
			assert.EqualValues(t, 8080, res.TemplatePort)
		})
	}
	cl := echo(&plain, canary)
	cl.revision("new")
	assert.True(t, resolve.Concerns(cl, canary, v1alpha1.WorkloadReference{Kind: "Rollout", Name: "echo"}))
	assert.False(t, resolve.Concerns(cl, stable, v1alpha1.WorkloadReference{Kind: "Rollout", Name: "echo"}))
	assert.False(t, resolve.Concerns(cl, canary, v1alpha1.WorkloadReference{Kind: "Rollout", Name: "gone"}))
}

func TestRolloutWithTheTemplateOfAnotherWorkload(t *testing.T) {
	from := func(kind, name string) *cluster {
		c := echo(nil, service("orders", http))
		c.rollouts["echo"].FromKind, c.rollouts["echo"].FromName = kind, name
		return c
	}
	asked := intercept(withWorkload("Rollout", "echo"))

	c := from("Deployment", "orders")
	c.deployments = orders(template(app)).deployments
	c.revision("1")
	res, err := resolve.Intercept(c, asked)
	require.NoError(t, err)
	assert.Equal(t, []string{"echo-1-a"}, podNames(res), "the Rollout's pods, and not the Deployment's")

	c = from("ReplicaSet", "base")
	c.replicaSets["base"] = &appsv1.ReplicaSet{ObjectMeta: meta("base", "", ""),
		Spec: appsv1.ReplicaSetSpec{Template: template(app)}}
	res, err = resolve.Intercept(c, asked)
	require.NoError(t, err)
	assert.Equal(t, []types.UID{"echo"}, res.Owners)

	c = from("PodTemplate", "base")
	_, err = resolve.Intercept(c, asked)
	require.EqualError(t, err, "Rollout echo has the pods of PodTemplate base, which is not there")
	c.revision("1")
	_, err = resolve.Intercept(c, asked)
	require.NoError(t, err, "its ReplicaSet tells")
}

func TestRolloutsWithoutATemplateAreExplained(t *testing.T) {
	asked := intercept(withWorkload("Rollout", "echo"))
	c := echo(nil)
	_, err := resolve.Intercept(c, asked)
	require.EqualError(t, err, "Rollout echo has no pod template")
	c.rollouts["echo"].Broken = "its pod template cannot be read: why"
	_, err = resolve.Intercept(c, asked)
	require.EqualError(t, err, "Rollout echo cannot be intercepted: its pod template cannot be read: why")
	_, err = resolve.Intercept(&cluster{}, asked)
	require.EqualError(t, err, `there is no Rollout "echo" in namespace shop`)
}

func TestPodsThatCanBeIntercepted(t *testing.T) {
	spec := template(app).Spec
	labelled := pod("web", "", "", spec)
	labelled.Labels = map[string]string{"app": "orders"}
	pending := pod("pending", "", "", spec,
		func(p *corev1.Pod) { p.Status = corev1.PodStatus{}; p.Spec.NodeName = "" })
	c := &cluster{pods: []*corev1.Pod{labelled, pending, pod("db-0", "StatefulSet", "db", spec)},
		services: []*corev1.Service{service("orders", http)}}
	res, err := resolve.Intercept(c, intercept(withWorkload("Pod", "web")))
	require.NoError(t, err)
	assert.Equal(t, "orders/http", res.Service+"/"+res.Port)
	assert.Equal(t, []string{"web"}, podNames(res))

	res, err = resolve.Intercept(c, intercept(withWorkload("Pod", "pending")))
	require.NoError(t, err, "it will run")
	assert.Equal(t, "/web", res.Service+"/"+res.Port)
	assert.Empty(t, res.Pods)

	for name, says := range map[string]string{
		"db-0": "Pod db-0 belongs to StatefulSet db: intercept that",
		"gone": `there is no Pod "gone" in namespace shop`,
	} {
		_, err = resolve.Intercept(c, intercept(withWorkload("Pod", name)))
		assert.EqualError(t, err, says)
	}
}

func TestOneServiceForEachPodOfAStatefulSet(t *testing.T) {
	c := &cluster{statefulSets: map[string]*appsv1.StatefulSet{"db": {ObjectMeta: meta("db", "", ""),
		Spec: appsv1.StatefulSetSpec{Template: template(app)}}}}
	for _, name := range []string{"db-0", "db-1"} {
		p := pod(name, "StatefulSet", "db", template(app).Spec)
		p.Labels = map[string]string{"app": "orders", "statefulset.kubernetes.io/pod-name": name}
		c.pods = append(c.pods, p)
		s := service(name, http)
		s.Spec.Selector = map[string]string{"statefulset.kubernetes.io/pod-name": name}
		c.services = append(c.services, s)
	}
	_, err := resolve.Intercept(c, intercept(withWorkload("StatefulSet", "db")))
	require.EqualError(t, err,
		"2 services select the pods of StatefulSet db: db-0, db-1 — use --service to choose one")
	c.services = append(c.services, service("db", http))
	res, err := resolve.Intercept(c, intercept(withWorkload("StatefulSet", "db")))
	require.NoError(t, err)
	assert.Equal(t, "db", res.Service, "the one for all of them")
}
