package install

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
