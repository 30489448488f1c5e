// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
)

const ns = "shop"

// cluster is a small one, in memory. Names serve as UIDs.
type cluster struct {
	deployments  map[string]*appsv1.Deployment
	replicaSets  map[string]*appsv1.ReplicaSet
	statefulSets map[string]*appsv1.StatefulSet
	daemonSets   map[string]*appsv1.DaemonSet
	rollouts     map[string]*rollout.Rollout
	jobs         map[string]*batchv1.Job
	cronJobs     map[string]*batchv1.CronJob
	pods         []*corev1.Pod
	services     []*corev1.Service
}

func (c *cluster) Deployment(_, name string) *appsv1.Deployment { return c.deployments[name] }

func (c *cluster) ReplicaSet(_, name string) *appsv1.ReplicaSet { return c.replicaSets[name] }

func (c *cluster) StatefulSet(_, name string) *appsv1.StatefulSet { return c.statefulSets[name] }

func (c *cluster) DaemonSet(_, name string) *appsv1.DaemonSet { return c.daemonSets[name] }

func (c *cluster) Rollout(_, name string) *rollout.Rollout { return c.rollouts[name] }

func (c *cluster) Job(_, name string) *batchv1.Job { return c.jobs[name] }

func (c *cluster) CronJob(_, name string) *batchv1.CronJob { return c.cronJobs[name] }

func (c *cluster) JobsOf(owner types.UID) []*batchv1.Job {
	var all []*batchv1.Job
	for _, j := range c.jobs {
		if ref := metav1.GetControllerOf(j); ref != nil && ref.UID == owner {
			all = append(all, j)
		}
	}
	return all
}

func (c *cluster) Services(string) []*corev1.Service { return c.services }

func (c *cluster) Pod(_, name string) *corev1.Pod {
	for _, p := range c.pods {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (c *cluster) ReplicaSetsOf(owner types.UID) []*appsv1.ReplicaSet {
	var all []*appsv1.ReplicaSet
	for _, rs := range c.replicaSets {
		if ref := metav1.GetControllerOf(rs); ref != nil && ref.UID == owner {
			all = append(all, rs)
		}
	}
	return all
}

func (c *cluster) PodsOf(owner types.UID) []*corev1.Pod {
	var all []*corev1.Pod
	for _, p := range c.pods {
		if ref := metav1.GetControllerOf(p); ref != nil && ref.UID == owner {
			all = append(all, p)
		}
	}
	return all
}

func meta(name, ownerKind, owner string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(name)}
	if owner != "" {
		yes := true
		m.OwnerReferences = []metav1.OwnerReference{{Kind: ownerKind, Name: owner,
			UID: types.UID(owner), Controller: &yes}}
	}
	return m
}

func container(name string, ports ...corev1.ContainerPort) corev1.Container {
	return corev1.Container{Name: name, Ports: ports}
}

func named(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number}
}

func template(containers ...corev1.Container) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "orders"}},
		Spec:       corev1.PodSpec{Containers: containers},
	}
}

func pod(name, ownerKind, owner string, spec corev1.PodSpec, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta(name, ownerKind, owner), Spec: *spec.DeepCopy(), Status: corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.1",
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}}
	p.Spec.NodeName = "node-1"
	for _, f := range change {
		f(p)
	}
	return p
}

func service(name string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta(name, "", ""),
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "orders"}, Ports: ports}}
}

func port(name string, number int32, target intstr.IntOrString) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, TargetPort: target}
}

func udp(p corev1.ServicePort) corev1.ServicePort {
	p.Protocol = corev1.ProtocolUDP
	return p
}

// orders is Deployment orders with one ReplicaSet and one pod.
func orders(t corev1.PodTemplateSpec, services ...*corev1.Service) *cluster {
	return &cluster{
		deployments: map[string]*appsv1.Deployment{"orders": {ObjectMeta: meta("orders", "", ""),
			Spec: appsv1.DeploymentSpec{Template: t}}},
		replicaSets: map[string]*appsv1.ReplicaSet{"orders-1": {
			ObjectMeta: meta("orders-1", "Deployment", "orders"), Spec: appsv1.ReplicaSetSpec{Template: t},
		}},
		pods:     []*corev1.Pod{pod("orders-1-a", "ReplicaSet", "orders-1", t.Spec)},
		services: services,
	}
}

func intercept(change ...func(*v1alpha1.InterceptSpec)) *v1alpha1.Intercept {
	ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "orders-x",
		Annotations: map[string]string{v1alpha1.KnowsUDP: "true"}}}
	ic.Spec.Name = "orders"
	ic.Spec.Workload = v1alpha1.WorkloadReference{Kind: "Deployment", Name: "orders"}
	for _, f := range change {
		f(&ic.Spec)
	}
	return ic
}

func withPort(id string) func(*v1alpha1.InterceptSpec) {
	return func(s *v1alpha1.InterceptSpec) { s.Port = id }
}

func withService(name string) func(*v1alpha1.InterceptSpec) {
	return func(s *v1alpha1.InterceptSpec) { s.Service = name }
}

func withContainer(name string) func(*v1alpha1.InterceptSpec) {
	return func(s *v1alpha1.InterceptSpec) { s.Container = name }
}

func withWorkload(kind, name string) func(*v1alpha1.InterceptSpec) {
	return func(s *v1alpha1.InterceptSpec) { s.Workload = v1alpha1.WorkloadReference{Kind: kind, Name: name} }
}

func withProtocol(p v1alpha1.Protocol) func(*v1alpha1.InterceptSpec) {
	return func(s *v1alpha1.InterceptSpec) { s.Protocol = p }
}

func withHTTP(s *v1alpha1.InterceptSpec) { s.Mechanism = v1alpha1.MechanismHTTP }

func sctp(p corev1.ServicePort) corev1.ServicePort {
	p.Protocol = corev1.ProtocolSCTP
	return p
}

func udpContainer(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolUDP}
}
