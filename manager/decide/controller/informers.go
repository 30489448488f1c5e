// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
)

// Indexes of the informers.
const (
	byController = "controller" // UID of the controlling owner
	byWorkload   = "workload"   // the workload of an intercept: namespace/kind/name
	byKeyHash    = "keyHash"    // of an intercept's session
	byUID        = "uid"
)

// informers are the manager's copy of the part of the cluster that it needs. They implement
// resolve.Cluster.
type informers struct {
	intercepts, pods, services                         cache.SharedIndexInformer
	deployments, replicaSets, statefulSets, daemonSets cache.SharedIndexInformer
	jobs, cronJobs                                     cache.SharedIndexInformer
	rollouts                                           *rollouts
}

func newInformers(c client.WithWatch, log *slog.Logger) (*informers, error) {
	bare := func(list client.ObjectList, object client.Object) cache.SharedIndexInformer {
		return newInformer(c, list, object, cache.Indexers{}, "")
	}
	owned := cache.Indexers{byController: indexController}
	named := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	inf := &informers{
		intercepts: newInformer(c, &v1alpha1.InterceptList{}, &v1alpha1.Intercept{}, cache.Indexers{
			cache.NamespaceIndex: cache.MetaNamespaceIndexFunc,
			byWorkload: indexIntercepts(func(ic *v1alpha1.Intercept) string {
				return workloadKey(ic.Namespace, ic.Spec.Workload.Kind, ic.Spec.Workload.Name)
			}),
			byKeyHash: indexIntercepts(func(ic *v1alpha1.Intercept) string { return ic.Spec.Client.KeyHash }),
			byUID:     indexIntercepts(func(ic *v1alpha1.Intercept) string { return string(ic.UID) }),
		}, ""),
		pods:         newInformer(c, &corev1.PodList{}, &corev1.Pod{}, owned, ""),
		services:     newInformer(c, &corev1.ServiceList{}, &corev1.Service{}, named, ""),
		deployments:  bare(&appsv1.DeploymentList{}, &appsv1.Deployment{}),
		replicaSets:  newInformer(c, &appsv1.ReplicaSetList{}, &appsv1.ReplicaSet{}, owned, ""),
		statefulSets: bare(&appsv1.StatefulSetList{}, &appsv1.StatefulSet{}),
		daemonSets:   bare(&appsv1.DaemonSetList{}, &appsv1.DaemonSet{}),
		jobs:         newInformer(c, &batchv1.JobList{}, &batchv1.Job{}, owned, ""),
		cronJobs:     bare(&batchv1.CronJobList{}, &batchv1.CronJob{}),
	}
	var err error
	if inf.rollouts, err = newRollouts(c, log); err != nil {
		return nil, fmt.Errorf("set up an informer: %w", err)
	}
	for _, i := range inf.all() {
		if err := i.SetTransform(strip); err != nil {
			return nil, fmt.Errorf("set up an informer: %w", err)
		}
	}
	return inf, nil
}

func (inf *informers) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{inf.intercepts, inf.pods, inf.services, inf.deployments,
		inf.replicaSets, inf.statefulSets, inf.daemonSets, inf.jobs, inf.cronJobs}
}

func (inf *informers) synced() []cache.InformerSynced {
	var all []cache.InformerSynced
	for _, i := range inf.all() {
		all = append(all, i.HasSynced)
	}
	return all
}

// newInformer follows the objects of a kind: all of them, or the one with a name.
func newInformer(c client.WithWatch, list client.ObjectList, object client.Object,
	indexers cache.Indexers, name string) cache.SharedIndexInformer {
	fields := ""
	if name != "" {
		fields = "metadata.name=" + name
	}
	empty := func() client.ObjectList { return list.DeepCopyObject().(client.ObjectList) }
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			l := empty()
			options.FieldSelector = fields
			return l, c.List(ctx, l, &client.ListOptions{Raw: &options, Limit: options.Limit,
				Continue: options.Continue})
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = fields
			return c.Watch(ctx, empty(), &client.ListOptions{Raw: &options})
		},
	}
	return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, c), object, 0, indexers)
}

func indexController(obj any) ([]string, error) {
	if o, ok := obj.(metav1.Object); ok {
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
			return []string{string(ref.UID)}, nil
		}
	}
	return nil, nil
}

func indexIntercepts(key func(*v1alpha1.Intercept) string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		if ic, ok := obj.(*v1alpha1.Intercept); ok {
			return []string{key(ic)}, nil
		}
		return nil, nil
	}
}

func workloadKey(namespace, kind, name string) string { return namespace + "/" + kind + "/" + name }

func get[T any](i cache.SharedIndexInformer, namespace, name string) *T {
	obj, ok, err := i.GetStore().GetByKey(namespace + "/" + name)
	if !ok || err != nil {
		return nil
	}
	return any(obj).(*T)
}

func by[T any](i cache.SharedIndexInformer, index, value string) []*T {
	objs, err := i.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil // the index does not exist, which every test would show
	}
	all := make([]*T, 0, len(objs))
	for _, obj := range objs {
		all = append(all, obj.(*T))
	}
	return all
}

func (inf *informers) Deployment(namespace, name string) *appsv1.Deployment {
	return get[appsv1.Deployment](inf.deployments, namespace, name)
}

func (inf *informers) ReplicaSet(namespace, name string) *appsv1.ReplicaSet {
	return get[appsv1.ReplicaSet](inf.replicaSets, namespace, name)
}

func (inf *informers) StatefulSet(namespace, name string) *appsv1.StatefulSet {
	return get[appsv1.StatefulSet](inf.statefulSets, namespace, name)
}

func (inf *informers) DaemonSet(namespace, name string) *appsv1.DaemonSet {
	return get[appsv1.DaemonSet](inf.daemonSets, namespace, name)
}

func (inf *informers) Job(namespace, name string) *batchv1.Job {
	return get[batchv1.Job](inf.jobs, namespace, name)
}

func (inf *informers) CronJob(namespace, name string) *batchv1.CronJob {
	return get[batchv1.CronJob](inf.cronJobs, namespace, name)
}

func (inf *informers) Pod(namespace, name string) *corev1.Pod {
	return get[corev1.Pod](inf.pods, namespace, name)
}

func (inf *informers) Rollout(namespace, name string) *rollout.Rollout {
	return inf.rollouts.get(namespace, name)
}

func (inf *informers) ReplicaSetsOf(owner types.UID) []*appsv1.ReplicaSet {
	return by[appsv1.ReplicaSet](inf.replicaSets, byController, string(owner))
}

func (inf *informers) JobsOf(owner types.UID) []*batchv1.Job {
	return by[batchv1.Job](inf.jobs, byController, string(owner))
}

func (inf *informers) PodsOf(owner types.UID) []*corev1.Pod {
	return by[corev1.Pod](inf.pods, byController, string(owner))
}

func (inf *informers) Services(namespace string) []*corev1.Service {
	return by[corev1.Service](inf.services, cache.NamespaceIndex, namespace)
}
