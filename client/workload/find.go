// SPDX-License-Identifier: Apache-2.0

// Package workload finds the workload that a name means, and lists those that can be intercepted.
package workload

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
)

// Find returns the kind of the workload with that name. If kind is not empty, it only checks that
// there is one.
func Find(ctx context.Context, cluster *kube.Cluster, namespace, kind, name string) (string, error) {
	api, err := cluster.Client()
	if err != nil {
		return "", err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	found, err := lookUp(ctx, api, namespace, kind, name)
	if err != nil {
		return "", cluster.Explain(err)
	}
	for _, object := range found {
		if isOurs(object.GetLabels()) {
			return "", reason.New(codes.FailedPrecondition, reason.Invalid,
				"%s %s cannot be intercepted: %s", kindOf(object), name, ours).
				Advise("choose another workload")
		}
	}
	switch found = likely(found); len(found) {
	case 0:
		return "", notFound(ctx, cluster, api, namespace, kind, name)
	case 1:
		if pod, ok := found[0].(*corev1.Pod); ok {
			return kindOf(pod), ownedPod(ctx, api, pod)
		}
		return kindOf(found[0]), nil
	}
	return "", ambiguous(namespace, name, found)
}

// lookUp returns the workloads with that name, of one kind or of all.
func lookUp(ctx context.Context, api client.Client, namespace, kind, name string) ([]client.Object, error) {
	kinds := v1alpha1.WorkloadKinds
	if kind != "" {
		kinds = []string{kind}
	}
	// All requests run at once: on a long path six of them take as long as one.
	errs := make([]error, len(kinds))
	objects := make([]client.Object, len(kinds))
	var asking sync.WaitGroup
	for i, kind := range kinds {
		objects[i] = newObject(kind)
		asking.Go(func() {
			errs[i] = api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name},
				objects[i])
		})
	}
	asking.Wait()
	var found []client.Object
	for i, err := range errs {
		switch {
		case err == nil:
			found = append(found, objects[i])
		case apierrors.IsNotFound(err), kind == "" && isMissing(kinds[i], err):
		default:
			return nil, err
		}
	}
	return found, nil
}

func newObject(kind string) client.Object {
	switch kind {
	case "Deployment":
		return &appsv1.Deployment{}
	case "StatefulSet":
		return &appsv1.StatefulSet{}
	case "DaemonSet":
		return &appsv1.DaemonSet{}
	case rollout.Kind:
		return rollout.Object()
	case "Pod":
		return &corev1.Pod{}
	case "Job":
		return &batchv1.Job{}
	case "CronJob":
		return &batchv1.CronJob{}
	default:
		return &appsv1.ReplicaSet{}
	}
}

func kindOf(object client.Object) string {
	switch object.(type) {
	case *appsv1.Deployment:
		return "Deployment"
	case *appsv1.StatefulSet:
		return "StatefulSet"
	case *appsv1.DaemonSet:
		return "DaemonSet"
	case *appsv1.ReplicaSet:
		return "ReplicaSet"
	case *corev1.Pod:
		return "Pod"
	case *batchv1.Job:
		return "Job"
	case *batchv1.CronJob:
		return "CronJob"
	default:
		return rollout.Kind
	}
}

// isMissing reports whether an error means that this account sees no objects of a kind: the cluster
// lacks the kind, or the account's role is older than the support for it.
func isMissing(kind string, err error) bool {
	switch kind {
	case "DaemonSet", "Pod", "Job", "CronJob", rollout.Kind:
		return apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
	}
	return false
}

// likely drops what is hardly meant by a name that others have too: a pod, and the Deployment that
// a Rollout of the same name has replaced.
func likely(found []client.Object) []client.Object {
	if len(found) < 2 {
		return found
	}
	replaced := ""
	for _, object := range found {
		if u, ok := object.(*unstructured.Unstructured); ok {
			r := rollout.From(u)
			if r.FromName == r.Name {
				replaced = r.FromKind
			}
		}
	}
	var rest []client.Object
	for _, object := range found {
		switch kindOf(object) {
		case "Pod", "Job", "CronJob", replaced:
		default:
			rest = append(rest, object)
		}
	}
	if len(rest) == 0 { // a Job comes before a CronJob and a Pod of its name
		return slices.DeleteFunc(found, func(object client.Object) bool { return kindOf(object) == "Pod" })
	}
	return rest
}

// ambiguous returns the error for several workloads of a name, with how to choose.
func ambiguous(namespace, name string, found []client.Object) error {
	var kinds, words []string
	for _, object := range found {
		kinds = append(kinds, "a "+kindOf(object))
		words = append(words, "--workload "+strings.ToLower(kindOf(object))+"/"+name)
	}
	return reason.New(codes.InvalidArgument, reason.WorkloadAmbiguous, "%q is %s in namespace %s",
		name, strings.Join(kinds, " and "), namespace).
		Advise("choose with %s", strings.Join(words, " or "))
}

// ownedPod refuses a pod that belongs to a workload which can be intercepted itself: the next
// revision or eviction would end the pod.
func ownedPod(ctx context.Context, api client.Client, pod *corev1.Pod) error {
	owner := owningWorkload(pod)
	if owner == nil {
		return nil
	}
	if owner.Kind == "ReplicaSet" {
		rs := &appsv1.ReplicaSet{}
		if api.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: owner.Name}, rs) == nil {
			owner = cmp.Or(owningWorkload(rs), owner)
		}
	}
	return reason.New(codes.FailedPrecondition, reason.Invalid, "Pod %s belongs to %s %s",
		pod.Name, owner.Kind, owner.Name).
		Advise("run `sidestep intercept %s`", owner.Name)
}

// owningWorkload returns the controller of an object if it can be intercepted itself.
func owningWorkload(object metav1.Object) *metav1.OwnerReference {
	owner := metav1.GetControllerOfNoCopy(object)
	if owner == nil || owner.Kind == "Pod" || owner.Kind == "Job" || !slices.Contains(v1alpha1.WorkloadKinds, owner.Kind) {
		return nil
	}
	return owner
}

// notFound returns the error for a name that no workload has, with similar names.
func notFound(ctx context.Context, cluster *kube.Cluster, api client.Client, namespace, kind,
	name string) error {
	what := "workload"
	if kind != "" {
		what = kind
	}
	missing := reason.New(codes.NotFound, reason.WorkloadNotFound, "%s %q not found in namespace %s",
		what, name, namespace)
	known, err := listNames(ctx, api, namespace, kind)
	switch {
	case err != nil:
		// Users who may get but not list still learn that the name is wrong.
	case len(known) == 0 && apierrors.IsNotFound(api.Get(ctx, client.ObjectKey{Name: namespace},
		&corev1.Namespace{})):
		return reason.New(codes.NotFound, reason.WorkloadNotFound, "namespace %s does not exist",
			namespace).
			Advise("choose another with --namespace")
	case len(known) == 0:
		missing = missing.Advise("it has none; choose another with --namespace")
	default:
		if similar := Similar(name, known); len(similar) > 0 {
			quoted := make([]string, len(similar))
			for i, s := range similar {
				quoted[i] = fmt.Sprintf("%q", s)
			}
			return missing.Advise("did you mean %s?", strings.Join(quoted, " or ")).
				With("similar", strings.Join(similar, ","))
		}
		missing = missing.Advise("`sidestep list` shows what there is")
	}
	return missing
}

// listNames lists the workloads of a namespace. It leaves out those that belong to another, unless
// they are of the wanted kind.
func listNames(ctx context.Context, api client.Client, namespace, kind string) ([]string, error) {
	var found []string
	for _, k := range v1alpha1.WorkloadKinds {
		if kind != "" && k != kind {
			continue
		}
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(groupVersion(k).WithKind(k + "List"))
		if err := api.List(ctx, list, client.InNamespace(namespace)); isMissing(k, err) {
			continue
		} else if err != nil {
			return nil, err
		}
		for i := range list.Items {
			if kind != "" && k != "Pod" || !hasOwner(k, &list.Items[i]) {
				found = append(found, list.Items[i].Name)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// hasOwner reports whether an object belongs to another workload, and so is not listed by itself.
func hasOwner(kind string, object metav1.Object) bool {
	switch kind {
	case "ReplicaSet":
		return ownerKind(object) == "Deployment"
	case "Pod", "Job":
		return ownerKind(object) != ""
	}
	return false
}

func groupVersion(kind string) schema.GroupVersion {
	switch kind {
	case rollout.Kind:
		return rollout.GroupVersion
	case "Pod":
		return corev1.SchemeGroupVersion
	case "Job", "CronJob":
		return batchv1.SchemeGroupVersion
	}
	return appsv1.SchemeGroupVersion
}

func ownerKind(object metav1.Object) string {
	if owner := metav1.GetControllerOfNoCopy(object); owner != nil {
		return owner.Kind
	}
	return ""
}
