package resolve

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Rollout is what the manager reads of a Rollout of Argo Rollouts, which takes the place of a Deployment: its pods belong to ReplicaSets, and
// those to it.
type Rollout struct {
	metav1.ObjectMeta
	// Template is nil where the pods are those of another workload.
	Template           *corev1.PodTemplateSpec
	FromKind, FromName string
	// Broken is why the template cannot be read.
	Broken string
}

// RolloutFrom reads the object as it is in the API.
func RolloutFrom(u *unstructured.Unstructured) *Rollout {
	r := &Rollout{ObjectMeta: metav1.ObjectMeta{
		Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion(), Generation: u.GetGeneration(),
		Labels: u.GetLabels(), OwnerReferences: u.GetOwnerReferences(),
	}}
	r.FromKind, _, _ = unstructured.NestedString(u.Object, "spec", "workloadRef", "kind")
	r.FromName, _, _ = unstructured.NestedString(u.Object, "spec", "workloadRef", "name")
	template, found, err := unstructured.NestedMap(u.Object, "spec", "template")
	if err == nil && found {
		r.Template = &corev1.PodTemplateSpec{}
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(template, r.Template)
	}
	if err != nil {
		r.Template, r.Broken = nil, fmt.Sprintf("its pod template cannot be read: %v", err)
	}
	return r
}

func (w *workload) findRollout(c Cluster, namespace string) error {
	r := c.Rollout(namespace, w.ref.Name)
	if r == nil {
		return nil
	}
	replicaSets := c.ReplicaSetsOf(r.UID)
	w.is(r.UID, r.template(c, replicaSets))
	w.owns(replicaSets)
	switch {
	case w.template != nil:
		return nil
	case r.Broken != "":
		return invalid(WorkloadNotFound, "%s cannot be intercepted: %s", w, r.Broken)
	case r.FromName != "":
		return invalid(WorkloadNotFound, "%s has the pods of %s %s, which is not there", w, r.FromKind, r.FromName)
	}
	return invalid(WorkloadNotFound, "%s has no pod template", w)
}

// template is the Rollout's own, or that of the workload that it refers to, or what the newest ReplicaSet was made from.
func (r *Rollout) template(c Cluster, replicaSets []*appsv1.ReplicaSet) *corev1.PodTemplateSpec {
	if r.Template != nil {
		return r.Template
	}
	switch r.FromKind {
	case "Deployment":
		if d := c.Deployment(r.Namespace, r.FromName); d != nil {
			return &d.Spec.Template
		}
	case "ReplicaSet":
		if rs := c.ReplicaSet(r.Namespace, r.FromName); rs != nil {
			return &rs.Spec.Template
		}
	}
	if len(replicaSets) == 0 {
		return nil
	}
	newest := slices.MaxFunc(replicaSets, func(a, b *appsv1.ReplicaSet) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &newest.Spec.Template
}
