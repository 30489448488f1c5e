package resolve

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// workload is what the three kinds have in common.
type workload struct {
	ref      v1alpha1.WorkloadReference
	owners   []types.UID
	template *corev1.PodTemplateSpec
	pods     []*corev1.Pod // by name
}

func (w *workload) String() string { return w.ref.Kind + " " + w.ref.Name }

func findWorkload(c Cluster, namespace string, ref v1alpha1.WorkloadReference) (*workload, error) {
	w := &workload{ref: ref}
	switch ref.Kind {
	case "Deployment":
		if d := c.Deployment(namespace, ref.Name); d != nil {
			w.owners, w.template = []types.UID{d.UID}, &d.Spec.Template
			for _, rs := range c.ReplicaSetsOf(d.UID) {
				w.owners = append(w.owners, rs.UID)
			}
		}
	case "ReplicaSet":
		if rs := c.ReplicaSet(namespace, ref.Name); rs != nil {
			w.owners, w.template = []types.UID{rs.UID}, &rs.Spec.Template
		}
	case "StatefulSet":
		if s := c.StatefulSet(namespace, ref.Name); s != nil {
			w.owners, w.template = []types.UID{s.UID}, &s.Spec.Template
		}
	default:
		return nil, invalid(WorkloadNotFound, "workloads of kind %q cannot be intercepted: use a Deployment, a ReplicaSet or a StatefulSet", ref.Kind)
	}
	if w.template == nil {
		return nil, invalid(WorkloadNotFound, "there is no %s %q in namespace %s", ref.Kind, ref.Name, namespace)
	}
	for _, owner := range w.owners {
		w.pods = append(w.pods, c.PodsOf(owner)...)
	}
	slices.SortFunc(w.pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return w, nil
}

// containersOf are the containers that run as long as the pod: the main ones first, then init containers that restart always.
func containersOf(spec *corev1.PodSpec) []*corev1.Container {
	var all []*corev1.Container
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if policy := spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			all = append(all, &spec.InitContainers[i])
		}
	}
	return all
}

func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

// namedPort gives the number of the pod's TCP container port of that name, or 0. It may be limited to one container.
func namedPort(spec *corev1.PodSpec, name, container string) int32 {
	for _, c := range containersOf(spec) {
		for _, p := range c.Ports {
			if p.Name == name && isTCP(p.Protocol) && (container == "" || container == c.Name) {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// declarer names the container that declares the TCP port, or is empty.
func declarer(spec *corev1.PodSpec, port int32) string {
	for _, c := range containersOf(spec) {
		for _, p := range c.Ports {
			if p.ContainerPort == port && isTCP(p.Protocol) {
				return c.Name
			}
		}
	}
	return ""
}

// containerFor is the container that is meant: the one asked for, else the one that declares the port, else the first.
func containerFor(w *workload, asked string, port int32) (string, error) {
	spec := &w.template.Spec
	if asked != "" {
		var names []string
		for _, c := range containersOf(spec) {
			if c.Name == asked {
				return asked, nil
			}
			names = append(names, c.Name)
		}
		return "", invalid(ContainerNotFound, "%s has no container %q; it has: %s", w, asked, strings.Join(names, ", "))
	}
	if name := declarer(spec, port); name != "" {
		return name, nil
	}
	if len(spec.Containers) > 0 {
		return spec.Containers[0].Name, nil
	}
	return "", nil
}
