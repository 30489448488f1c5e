// SPDX-License-Identifier: Apache-2.0

package controller

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/manager/endpoint"
)

// strip removes all fields of an object that the manager does not read. So a large cluster's pods
// fit into a small manager, and their environments are not in its memory at all. It is the
// transform of the informers, and changes the object.
func strip(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec)
		st := &o.Status
		o.Status = corev1.PodStatus{
			Phase: st.Phase, PodIP: st.PodIP, PodIPs: st.PodIPs, HostIP: st.HostIP, HostIPs: st.HostIPs,
			Conditions: endpoint.KeepReady(st.Conditions),
		}
	case *appsv1.Deployment:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.Template.Spec)
		o.Status = appsv1.DeploymentStatus{}
	case *appsv1.ReplicaSet:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.Template.Spec)
		o.Status = appsv1.ReplicaSetStatus{}
	case *appsv1.StatefulSet:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.Template.Spec)
		o.Spec.VolumeClaimTemplates = nil
		o.Status = appsv1.StatefulSetStatus{}
	case *appsv1.DaemonSet:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.Template.Spec)
		o.Status = appsv1.DaemonSetStatus{}
	case *batchv1.Job:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.Template.Spec)
		o.Status = batchv1.JobStatus{}
	case *batchv1.CronJob:
		stripMeta(&o.ObjectMeta)
		stripPodSpec(&o.Spec.JobTemplate.Spec.Template.Spec)
		o.Status = batchv1.CronJobStatus{}
	case *unstructured.Unstructured:
		if o.GetKind() != rollout.Kind {
			return obj, nil
		}
		r := rollout.From(o)
		if r.Template != nil {
			stripPodSpec(&r.Template.Spec)
		}
		return r, nil
	case *v1alpha1.Intercept:
		knows, says := o.Annotations[v1alpha1.KnowsUDP]
		stripMeta(&o.ObjectMeta)
		o.Labels, o.OwnerReferences = nil, nil // which may be a megabyte
		if says {
			o.Annotations = map[string]string{v1alpha1.KnowsUDP: knows}
		}
	case metav1.Object:
		o.SetManagedFields(nil)
	}
	return obj, nil
}

func stripMeta(m *metav1.ObjectMeta) {
	m.ManagedFields, m.Annotations = nil, nil
}

func stripPodSpec(s *corev1.PodSpec) {
	*s = corev1.PodSpec{
		NodeName: s.NodeName, HostNetwork: s.HostNetwork, RuntimeClassName: s.RuntimeClassName,
		Containers: stripContainers(s.Containers), InitContainers: stripContainers(s.InitContainers),
	}
}

func stripContainers(all []corev1.Container) []corev1.Container {
	for i := range all {
		c := &all[i]
		all[i] = corev1.Container{
			Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy,
			ReadinessProbe: stripProbe(c.ReadinessProbe), LivenessProbe: stripProbe(c.LivenessProbe),
			StartupProbe: stripProbe(c.StartupProbe),
			Lifecycle:    stripLifecycle(c.Lifecycle),
		}
	}
	return all
}

func stripProbe(p *corev1.Probe) *corev1.Probe {
	if p == nil || p.HTTPGet == nil && p.TCPSocket == nil && p.GRPC == nil {
		return nil
	}
	p.Exec = nil
	if p.HTTPGet != nil {
		p.HTTPGet.HTTPHeaders = nil
	}
	return p
}

func stripLifecycle(l *corev1.Lifecycle) *corev1.Lifecycle {
	if l == nil {
		return nil
	}
	kept := &corev1.Lifecycle{}
	if l.PostStart != nil && l.PostStart.HTTPGet != nil {
		l.PostStart.HTTPGet.HTTPHeaders = nil
		kept.PostStart = &corev1.LifecycleHandler{HTTPGet: l.PostStart.HTTPGet}
	}
	if l.PreStop != nil && l.PreStop.HTTPGet != nil {
		l.PreStop.HTTPGet.HTTPHeaders = nil
		kept.PreStop = &corev1.LifecycleHandler{HTTPGet: l.PreStop.HTTPGet}
	}
	return kept
}
