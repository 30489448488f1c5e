// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// workload is what all kinds have in common.
type workload struct {
	ref         v1alpha1.WorkloadReference
	owners      []types.UID
	template    *corev1.PodTemplateSpec
	replicaSets []*appsv1.ReplicaSet // of a Deployment or a Rollout
	pods        []*corev1.Pod        // by name
}

func (w *workload) String() string { return w.ref.Kind + " " + w.ref.Name }

func (w *workload) is(uid types.UID, template *corev1.PodTemplateSpec) {
	w.owners, w.template = []types.UID{uid}, template
}

func (w *workload) owns(replicaSets []*appsv1.ReplicaSet) {
	w.replicaSets = replicaSets
	for _, rs := range replicaSets {
		w.owners = append(w.owners, rs.UID)
	}
}

func findWorkload(c Cluster, namespace string, ref v1alpha1.WorkloadReference) (*workload, error) {
	w := &workload{ref: ref}
	switch ref.Kind {
	case "Deployment":
		if d := c.Deployment(namespace, ref.Name); d != nil {
			w.is(d.UID, &d.Spec.Template)
			w.owns(c.ReplicaSetsOf(d.UID))
		}
	case "ReplicaSet":
		if rs := c.ReplicaSet(namespace, ref.Name); rs != nil {
			w.is(rs.UID, &rs.Spec.Template)
		}
	case "StatefulSet":
		if s := c.StatefulSet(namespace, ref.Name); s != nil {
			w.is(s.UID, &s.Spec.Template)
		}
	case "DaemonSet":
		if d := c.DaemonSet(namespace, ref.Name); d != nil {
			w.is(d.UID, &d.Spec.Template)
		}
	case "Rollout":
		if err := w.findRollout(c, namespace); err != nil {
			return nil, err
		}
	case "Job":
		if j := c.Job(namespace, ref.Name); j != nil {
			w.is(j.UID, &j.Spec.Template)
		}
	case "CronJob":
		if cj := c.CronJob(namespace, ref.Name); cj != nil {
			w.is(cj.UID, &cj.Spec.JobTemplate.Spec.Template)
			for _, j := range c.JobsOf(cj.UID) {
				w.owners = append(w.owners, j.UID)
			}
		}
	case "Pod":
		if err := w.findPod(c, namespace); err != nil {
			return nil, err
		}
	default:
		return nil, invalid(WorkloadNotFound,
			"workloads of kind %q cannot be intercepted: use one of %s", ref.Kind,
			strings.Join(v1alpha1.WorkloadKinds, ", "))
	}
	if w.template == nil {
		return nil, invalid(WorkloadNotFound, "there is no %s %q in namespace %s", ref.Kind, ref.Name,
			namespace)
	}
	for _, owner := range w.owners {
		w.pods = append(w.pods, c.PodsOf(owner)...)
	}
	slices.SortFunc(w.pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return w, nil
}

// findPod finds a pod without an owner, or with an owner that cannot be intercepted itself. A pod
// of a workload disappears with the workload's next revision, so the workload is meant.
func (w *workload) findPod(c Cluster, namespace string) error {
	p := c.Pod(namespace, w.ref.Name)
	if p == nil {
		return nil
	}
	if owner := metav1.GetControllerOfNoCopy(p); owner != nil && owner.Kind != "Pod" && owner.Kind != "Job" &&
		slices.Contains(v1alpha1.WorkloadKinds, owner.Kind) {
		return invalid(WorkloadNotFound, "Pod %s belongs to %s %s: intercept that", p.Name, owner.Kind,
			owner.Name)
	}
	w.is(p.UID, &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec})
	w.pods = []*corev1.Pod{p}
	return nil
}

// selectedBy reports whether a service leads to the pods of the workload, by the labels that all of
// them have.
func (w *workload) selectedBy(s *corev1.Service) bool { return Selects(s, w.template.Labels) }

// partlySelectedBy reports whether a service leads to some of the pods: those of a revision, as a
// Rollout's stable and canary services do, or a single one, as a service for each pod of a
// StatefulSet does.
func (w *workload) partlySelectedBy(s *corev1.Service) bool {
	return slices.ContainsFunc(w.pods, func(p *corev1.Pod) bool { return Selects(s, p.Labels) }) ||
		slices.ContainsFunc(w.replicaSets,
			func(rs *appsv1.ReplicaSet) bool { return Selects(s, rs.Spec.Template.Labels) })
}

// Concerns reports whether a service matters to the intercepts of a workload.
func Concerns(c Cluster, s *corev1.Service, ref v1alpha1.WorkloadReference) bool {
	w, err := findWorkload(c, s.Namespace, ref)
	return err == nil && (w.selectedBy(s) || w.partlySelectedBy(s))
}

// containersOf returns the containers that run as long as the pod: the main ones first, then init
// containers with restartPolicy Always.
func containersOf(spec *corev1.PodSpec) []*corev1.Container {
	var all []*corev1.Container
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if policy := spec.InitContainers[i].RestartPolicy; policy != nil &&
			*policy == corev1.ContainerRestartPolicyAlways {
			all = append(all, &spec.InitContainers[i])
		}
	}
	return all
}

// namedPort returns the number of the pod's container port of that protocol and name, or 0. If
// container is not empty, it looks in that container alone.
func namedPort(spec *corev1.PodSpec, protocol corev1.Protocol, name, container string) int32 {
	for _, c := range containersOf(spec) {
		for _, p := range c.Ports {
			if p.Name == name && protocolOf(p.Protocol) == protocol &&
				(container == "" || container == c.Name) {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// declarer returns the name of the container that declares the port, or "".
func declarer(spec *corev1.PodSpec, protocol corev1.Protocol, port int32) string {
	for _, c := range containersOf(spec) {
		for _, p := range c.Ports {
			if p.ContainerPort == port && protocolOf(p.Protocol) == protocol {
				return c.Name
			}
		}
	}
	return ""
}

// containerFor returns the container that is meant: the one asked for, else the one that declares
// the port, else the first.
func containerFor(w *workload, asked string, port *port) (string, error) {
	spec := &w.template.Spec
	if asked != "" {
		var names []string
		for _, c := range containersOf(spec) {
			if c.Name == asked {
				return asked, nil
			}
			names = append(names, c.Name)
		}
		return "", invalid(ContainerNotFound, "%s has no container %q; it has: %s", w, asked,
			strings.Join(names, ", "))
	}
	if name := declarer(spec, port.protocol, port.template); name != "" {
		return name, nil
	}
	if len(spec.Containers) > 0 {
		return spec.Containers[0].Name, nil
	}
	return "", nil
}
