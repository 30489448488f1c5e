// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/changes"
	"sidestep.dev/sidestep/manager/decide/resolve"
	"sidestep.dev/sidestep/manager/endpoint"
)

// listen queues an intercept on every change that could matter to it. Each event costs index
// lookups, and never a walk through all intercepts.
func (c *Controller) listen() error {
	for inf, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.informers.intercepts:   handlers(c.interceptChanged),
		c.informers.pods:         handlers(c.podChanged),
		c.informers.services:     handlers(c.serviceChanged),
		c.informers.deployments:  handlers(c.workloadChanged("Deployment")),
		c.informers.statefulSets: handlers(c.workloadChanged("StatefulSet")),
		c.informers.daemonSets:   handlers(c.workloadChanged("DaemonSet")),
		c.informers.replicaSets:  handlers(c.workloadChanged("ReplicaSet")),
		c.informers.jobs:         handlers(c.workloadChanged("Job")),
		c.informers.cronJobs:     handlers(c.workloadChanged("CronJob")),
	} {
		if _, err := inf.AddEventHandler(handler); err != nil {
			return err
		}
	}
	return c.informers.rollouts.listen(handlers(c.workloadChanged("Rollout")))
}

// handlers calls changed with nil for before on an addition, and with nil for after on a deletion.
func handlers[T metav1.Object](changed func(before, after T)) cache.ResourceEventHandler {
	var none T
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { changed(none, obj.(T)) },
		UpdateFunc: func(before, after any) {
			if before.(T).GetResourceVersion() != after.(T).GetResourceVersion() {
				changed(before.(T), after.(T))
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if t, ok := obj.(T); ok {
				changed(t, none)
			}
		},
	}
}

func key(ic *v1alpha1.Intercept) types.NamespacedName {
	return types.NamespacedName{Namespace: ic.Namespace, Name: ic.Name}
}

func (c *Controller) enqueue(intercepts ...*v1alpha1.Intercept) {
	for _, ic := range intercepts {
		c.queue.Add(key(ic))
	}
}

func (c *Controller) interceptChanged(before, after *v1alpha1.Intercept) {
	switch {
	case after == nil:
		c.enqueue(before)
	case before == nil || before.UID != after.UID || before.Generation != after.Generation ||
		before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero():
		c.enqueue(after)
	default:
		c.writer.observe(after)
	}
}

// podFacts are the fields of a pod that matter.
type podFacts struct {
	phase       corev1.PodPhase
	node        string
	ready       bool
	gates       string
	terminating bool
	owner       types.UID
}

func factsOf(p *corev1.Pod) podFacts {
	f := podFacts{phase: p.Status.Phase, node: p.Spec.NodeName, terminating: p.DeletionTimestamp != nil}
	if ref := metav1.GetControllerOfNoCopy(p); ref != nil {
		f.owner = ref.UID
	}
	f.ready, f.gates = endpoint.Ready(p), endpoint.Gates(p)
	return f
}

func (c *Controller) podChanged(before, after *corev1.Pod) {
	if before != nil && after != nil && factsOf(before) == factsOf(after) &&
		slices.Equal(before.Status.PodIPs, after.Status.PodIPs) &&
		slices.Equal(before.Status.HostIPs, after.Status.HostIPs) &&
		maps.Equal(before.Labels, after.Labels) {
		return
	}
	for _, p := range []*corev1.Pod{before, after} {
		if p != nil {
			c.enqueueWorkload(p.Namespace, "Pod", p.Name)
			c.ownerChanged(p)
		}
	}
}

// ownerChanged queues the intercepts of the object's controller and of the controller's controller.
func (c *Controller) ownerChanged(obj metav1.Object) {
	ref := metav1.GetControllerOfNoCopy(obj)
	if ref == nil {
		return
	}
	c.enqueueWorkload(obj.GetNamespace(), ref.Kind, ref.Name)
	switch ref.Kind {
	case "ReplicaSet":
		if rs := c.informers.ReplicaSet(obj.GetNamespace(), ref.Name); rs != nil {
			c.ownerChanged(rs)
		}
	case "Job":
		if job := c.informers.Job(obj.GetNamespace(), ref.Name); job != nil {
			c.ownerChanged(job)
		}
	}
}

func (c *Controller) enqueueWorkload(namespace, kind, name string) {
	c.enqueue(by[v1alpha1.Intercept](c.informers.intercepts, byWorkload, workloadKey(namespace, kind, name))...)
}

func (c *Controller) workloadChanged(kind string) func(before, after metav1.Object) {
	return func(before, after metav1.Object) {
		obj := after
		switch {
		case after == nil:
			obj = before
		case before != nil && before.GetUID() == after.GetUID() &&
			before.GetGeneration() == after.GetGeneration() &&
			apiequality.Semantic.DeepEqual(before.GetOwnerReferences(), after.GetOwnerReferences()):
			return // only its status or its number of replicas
		}
		c.enqueueWorkload(obj.GetNamespace(), kind, obj.GetName())
		if kind == "ReplicaSet" || kind == "Job" {
			c.ownerChanged(obj)
		}
	}
}

func (c *Controller) serviceChanged(before, after *corev1.Service) {
	if before != nil && after != nil && apiequality.Semantic.DeepEqual(before.Spec, after.Spec) {
		return
	}
	var versions []*corev1.Service
	for _, s := range []*corev1.Service{before, after} {
		if s != nil {
			versions = append(versions, s)
		}
	}
	s := versions[0]
	concerned := map[string]bool{} // by workload: whether before or after selects it
	for _, ic := range by[v1alpha1.Intercept](c.informers.intercepts, cache.NamespaceIndex, s.Namespace) {
		k := workloadKey(ic.Namespace, ic.Spec.Workload.Kind, ic.Spec.Workload.Name)
		if _, known := concerned[k]; !known {
			concerned[k] = slices.ContainsFunc(versions,
				func(v *corev1.Service) bool { return resolve.Concerns(c.informers, v, ic.Spec.Workload) })
		}
		if concerned[k] || ic.Spec.Service == s.Name || ic.Status.Service == s.Name {
			c.enqueue(ic)
		}
	}
}

// follow queues the intercepts about which node agents report something new, those of laptops that
// have connected or disconnected, and those whose holders may have more or less than before.
func (c *Controller) follow(ctx context.Context) {
	agents, sessions := c.cfg.Plan.Changes(), c.cfg.Sessions.Changes()
	judgements := changes.NewSet[types.UID]()
	if c.cfg.Holders != nil {
		judgements = c.cfg.Holders.Changes()
	}
	for {
		select {
		case <-agents.Wake():
			for _, uid := range agents.Take() {
				c.enqueue(by[v1alpha1.Intercept](c.informers.intercepts, byUID, string(uid))...)
			}
		case <-judgements.Wake():
			for _, uid := range judgements.Take() {
				c.enqueue(by[v1alpha1.Intercept](c.informers.intercepts, byUID, string(uid))...)
			}
		case <-sessions.Wake():
			for _, keyHash := range sessions.Take() {
				c.sessionChanged(keyHash)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (c *Controller) sessionChanged(keyHash string) {
	c.enqueue(by[v1alpha1.Intercept](c.informers.intercepts, byKeyHash, keyHash)...)
	c.enqueue(by[v1alpha1.Intercept](c.informers.intercepts, byKeyHash, v1alpha1.WiretapKeyHash(keyHash))...)
}

// States counts the intercepts by state.
func (c *Controller) States() map[v1alpha1.State]int { return c.writer.states() }

var _ resolve.Cluster = (*informers)(nil)
