package install

import (
	"context"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// WorkloadNames are the workloads of a namespace that nothing else owns, for completion at the prompt.
func (c *Cluster) WorkloadNames(ctx context.Context, namespace string) ([]string, error) {
	deployments, err := c.kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	sets, err := c.kube.AppsV1().StatefulSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	replicas, err := c.kube.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range deployments.Items {
		names = append(names, d.Name)
	}
	for _, s := range sets.Items {
		names = append(names, s.Name)
	}
	for _, r := range replicas.Items {
		if metav1.GetControllerOf(&r) == nil {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// NamespaceNames are all namespaces.
func (c *Cluster) NamespaceNames(ctx context.Context) ([]string, error) {
	list, err := c.kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(list.Items))
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names, nil
}

// Parts are what a workload can be intercepted at, for completion at the prompt.
type Parts struct {
	Services   []string
	Ports      map[string][]string // names, or numbers where there is no name, by service
	Containers []string
}

// WorkloadParts are the services that select the pods of a workload, with their TCP ports, and its containers.
func (c *Cluster) WorkloadParts(ctx context.Context, namespace, name string) (Parts, error) {
	parts := Parts{Ports: map[string][]string{}}
	template, err := c.template(ctx, namespace, name)
	if err != nil {
		return parts, err
	}
	for _, container := range template.Spec.Containers {
		parts.Containers = append(parts.Containers, container.Name)
	}
	services, err := c.kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return parts, err
	}
	for _, s := range services.Items {
		if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(template.Labels)) {
			continue
		}
		parts.Services = append(parts.Services, s.Name)
		for _, port := range s.Spec.Ports {
			switch {
			case port.Protocol != "" && port.Protocol != corev1.ProtocolTCP:
			case port.Name != "":
				parts.Ports[s.Name] = append(parts.Ports[s.Name], port.Name)
			default:
				parts.Ports[s.Name] = append(parts.Ports[s.Name], strconv.Itoa(int(port.Port)))
			}
		}
	}
	return parts, nil
}

func (c *Cluster) template(ctx context.Context, namespace, name string) (*corev1.PodTemplateSpec, error) {
	deployment, err := c.kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return &deployment.Spec.Template, err
	}
	set, err := c.kube.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return &set.Spec.Template, err
	}
	replicas, err := c.kube.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return &replicas.Spec.Template, nil
}
