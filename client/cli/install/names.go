// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
)

var rollouts = rollout.GroupVersion.WithResource("rollouts")

// WorkloadNames returns the workloads of a namespace that have no owner, for completion. Kinds that
// the cluster lacks, or does not show, have none.
func (c *Cluster) WorkloadNames(ctx context.Context, namespace string) ([]string, error) {
	apps, all := c.kube.AppsV1(), metav1.ListOptions{}
	var mu sync.Mutex
	var names []string
	var g errgroup.Group
	for _, list := range []func() (runtime.Object, error){
		func() (runtime.Object, error) { return apps.Deployments(namespace).List(ctx, all) },
		func() (runtime.Object, error) { return apps.StatefulSets(namespace).List(ctx, all) },
		func() (runtime.Object, error) { return apps.ReplicaSets(namespace).List(ctx, all) },
		func() (runtime.Object, error) { return optional(apps.DaemonSets(namespace).List(ctx, all)) },
		func() (runtime.Object, error) { return optional(c.kube.BatchV1().Jobs(namespace).List(ctx, all)) },
		func() (runtime.Object, error) { return optional(c.kube.BatchV1().CronJobs(namespace).List(ctx, all)) },
		func() (runtime.Object, error) { return optional(c.kube.CoreV1().Pods(namespace).List(ctx, all)) },
		func() (runtime.Object, error) {
			return optional(c.dynamic.Resource(rollouts).Namespace(namespace).List(ctx, all))
		},
	} {
		g.Go(func() error {
			found, err := list()
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			return meta.EachListItem(found, func(item runtime.Object) error {
				if object, ok := item.(metav1.Object); ok && metav1.GetControllerOf(object) == nil {
					names = append(names, object.GetName())
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// optional returns an empty list for what the cluster lacks, or does not show.
func optional[L runtime.Object](list L, err error) (runtime.Object, error) {
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return &metav1.PartialObjectMetadataList{}, nil
	}
	return list, err
}

// NamespaceNames returns all namespaces.
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

// Parts are what an intercept of a workload can name, for completion.
type Parts struct {
	Services   []string
	Ports      map[string][]string // names, or numbers where there is no name, by service
	Containers []string
}

// WorkloadParts returns the services that select the pods of a workload, with their ports, and its
// containers.
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
		if len(s.Spec.Selector) == 0 ||
			!labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(template.Labels)) {
			continue
		}
		parts.Services = append(parts.Services, s.Name)
		for _, port := range s.Spec.Ports {
			name := cmp.Or(port.Name, strconv.Itoa(int(port.Port)))
			switch port.Protocol {
			case "", corev1.ProtocolTCP:
				parts.Ports[s.Name] = append(parts.Ports[s.Name], name)
			case corev1.ProtocolUDP:
				parts.Ports[s.Name] = append(parts.Ports[s.Name], name+"/UDP")
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
	daemons, err := c.kube.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return &daemons.Spec.Template, nil
	}
	job, err := c.kube.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return &job.Spec.Template, nil
	}
	cron, err := c.kube.BatchV1().CronJobs(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return &cron.Spec.JobTemplate.Spec.Template, nil
	}
	object, err := c.dynamic.Resource(rollouts).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		if r := rollout.From(object); r.Template != nil {
			return r.Template, nil
		}
	}
	pod, err := c.kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec}, nil
	}
	replicas, err := c.kube.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return &replicas.Spec.Template, nil
}

// ServicePort returns the number of a service's port, by its name or number. An empty id means the
// only one.
func (c *Cluster) ServicePort(ctx context.Context, namespace, service, id string) (int32, error) {
	s, err := c.kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	for _, port := range s.Spec.Ports {
		if id == port.Name || id == strconv.Itoa(int(port.Port)) || id == "" && len(s.Spec.Ports) == 1 {
			return port.Port, nil
		}
	}
	return 0, fmt.Errorf("service %s has no port %q", service, id)
}

// HasNamespace returns an error if there is no namespace of that name. If the user may not read
// namespaces, it returns nil.
func (c *Cluster) HasNamespace(ctx context.Context, name string) error {
	_, err := c.kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return nil
	}
	err = fmt.Errorf("there is no namespace %s in the cluster at %s", name, c.server)
	return reason.Advise(err, "`%s list-namespaces` shows those there are", c.program)
}
