// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/internal/rollout"
)

func (w *workload) findRollout(c Cluster, namespace string) error {
	r := c.Rollout(namespace, w.ref.Name)
	if r == nil {
		return nil
	}
	replicaSets := c.ReplicaSetsOf(r.UID)
	w.is(r.UID, templateOf(r, c, replicaSets))
	w.owns(replicaSets)
	switch {
	case w.template != nil:
		return nil
	case r.Broken != "":
		return invalid(WorkloadNotFound, "%s cannot be intercepted: %s", w, r.Broken)
	case r.FromName != "":
		return invalid(WorkloadNotFound, "%s has the pods of %s %s, which is not there", w, r.FromKind,
			r.FromName)
	}
	return invalid(WorkloadNotFound, "%s has no pod template", w)
}

// templateOf returns the template of the Rollout, or of the workload to which it refers, or that of
// the newest ReplicaSet.
func templateOf(r *rollout.Rollout, c Cluster, replicaSets []*appsv1.ReplicaSet) *corev1.PodTemplateSpec {
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
	newest := slices.MaxFunc(replicaSets,
		func(a, b *appsv1.ReplicaSet) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &newest.Spec.Template
}
