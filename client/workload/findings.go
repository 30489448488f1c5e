// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
)

const (
	// pageSize bounds one answer of the API server.
	pageSize = 500
	// fewPods are requested one by one. Most pods belong to workloads and are not listed, so only
	// the metadata of all pods is requested.
	fewPods = 20
)

// findings are the answers of the API server.
type findings struct {
	deployments  []appsv1.Deployment
	statefulSets []appsv1.StatefulSet
	daemonSets   []appsv1.DaemonSet
	replicaSets  []appsv1.ReplicaSet
	rollouts     []unstructured.Unstructured
	jobs         []batchv1.Job
	cronJobs     []batchv1.CronJob
	pods         []metav1.PartialObjectMetadata
	services     []corev1.Service
	intercepts   []v1alpha1.Intercept
}

// asker requests objects of one namespace, or of all.
type asker struct {
	ctx       context.Context
	api       client.Client
	namespace string
}

// ask requests everything at once.
func (f *findings) ask(g *errgroup.Group, a *asker) {
	g.Go(func() (err error) {
		f.deployments, err = all(a, &appsv1.DeploymentList{},
			func(l *appsv1.DeploymentList) []appsv1.Deployment { return l.Items })
		return err
	})
	g.Go(func() (err error) {
		f.statefulSets, err = all(a, &appsv1.StatefulSetList{},
			func(l *appsv1.StatefulSetList) []appsv1.StatefulSet { return l.Items })
		return err
	})
	g.Go(func() (err error) {
		f.replicaSets, err = all(a, &appsv1.ReplicaSetList{},
			func(l *appsv1.ReplicaSetList) []appsv1.ReplicaSet { return l.Items })
		return err
	})
	g.Go(func() (err error) {
		f.daemonSets, err = all(a, &appsv1.DaemonSetList{},
			func(l *appsv1.DaemonSetList) []appsv1.DaemonSet { return l.Items })
		return present("DaemonSet", err)
	})
	g.Go(func() (err error) {
		f.rollouts, err = all(a, rollout.ListOf(),
			func(l *unstructured.UnstructuredList) []unstructured.Unstructured { return l.Items })
		return present(rollout.Kind, err)
	})
	g.Go(func() (err error) {
		f.jobs, err = all(a, &batchv1.JobList{}, func(l *batchv1.JobList) []batchv1.Job { return l.Items })
		return present("Job", err)
	})
	g.Go(func() (err error) {
		f.cronJobs, err = all(a, &batchv1.CronJobList{},
			func(l *batchv1.CronJobList) []batchv1.CronJob { return l.Items })
		return present("CronJob", err)
	})
	g.Go(func() (err error) {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		f.pods, err = all(a, list,
			func(l *metav1.PartialObjectMetadataList) []metav1.PartialObjectMetadata { return l.Items })
		return present("Pod", err)
	})
	g.Go(func() (err error) {
		f.services, err = all(a, &corev1.ServiceList{},
			func(l *corev1.ServiceList) []corev1.Service { return l.Items })
		return err
	})
	g.Go(func() (err error) {
		f.intercepts, err = all(a, &v1alpha1.InterceptList{},
			func(l *v1alpha1.InterceptList) []v1alpha1.Intercept { return l.Items })
		return err
	})
}

// present returns nil for the error that a kind does not exist.
func present(kind string, err error) error {
	if isMissing(kind, err) {
		return nil
	}
	return err
}

// all lists everything of a kind, page by page. Each page is read into the same list.
func all[T any, L client.ObjectList](a *asker, page L, items func(L) []T) ([]T, error) {
	empty := page.DeepCopyObject().(L)
	var found []T
	for next := ""; ; {
		if err := a.api.List(a.ctx, page, client.InNamespace(a.namespace), client.Limit(pageSize),
			client.Continue(next)); err != nil {
			return nil, err
		}
		found = append(found, items(page)...)
		if next = page.GetContinue(); next == "" {
			return found, nil
		}
		page = empty.DeepCopyObject().(L)
	}
}

// listedPods returns the pods that are workloads by themselves: those without an owner, and those
// that are intercepted.
func (f *findings) listedPods(ctx context.Context, api client.Client, namespace string) ([]corev1.Pod, error) {
	wanted := map[client.ObjectKey]bool{}
	for _, i := range f.intercepts {
		if i.Spec.Workload.Kind == "Pod" {
			wanted[client.ObjectKey{Namespace: i.Namespace, Name: i.Spec.Workload.Name}] = true
		}
	}
	var keys []client.ObjectKey
	for i := range f.pods {
		if k := client.ObjectKeyFromObject(&f.pods[i]); wanted[k] || !hasOwner("Pod", &f.pods[i]) {
			keys = append(keys, k)
			wanted[k] = true
		}
	}
	pods := make([]corev1.Pod, len(keys))
	if len(keys) > fewPods {
		every, err := all(&asker{ctx, api, namespace}, &corev1.PodList{},
			func(l *corev1.PodList) []corev1.Pod { return l.Items })
		if err != nil {
			return nil, err
		}
		pods = slices.DeleteFunc(every,
			func(p corev1.Pod) bool { return !wanted[client.ObjectKeyFromObject(&p)] })
	} else {
		g, ctx := errgroup.WithContext(ctx)
		for i, k := range keys {
			g.Go(func() error { return client.IgnoreNotFound(api.Get(ctx, k, &pods[i])) })
		}
		if err := g.Wait(); apierrors.IsForbidden(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(pods, func(p corev1.Pod) bool {
		return p.Name == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	}), nil
}
