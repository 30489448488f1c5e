// Package workload knows the workloads of a cluster: which one is meant by a name, and which can be intercepted.
package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/client/daemon/reason"
	"sidestep.dev/sidestep/client/kube"
)

// Kinds that can be intercepted, in the order in which a name is looked for.
var Kinds = []string{"Deployment", "StatefulSet", "ReplicaSet"}

func newObject(kind string) client.Object {
	switch kind {
	case "Deployment":
		return &appsv1.Deployment{}
	case "StatefulSet":
		return &appsv1.StatefulSet{}
	default:
		return &appsv1.ReplicaSet{}
	}
}

// Find says which kind of workload has a name. With a kind given it only makes sure that there is one.
func Find(ctx context.Context, cluster *kube.Cluster, namespace, kind, name string) (string, error) {
	api, err := cluster.Client()
	if err != nil {
		return "", err
	}
	kinds := Kinds
	if kind != "" {
		kinds = []string{kind}
	}
	// All at once: over a long way three questions cost what one does.
	errs := make([]error, len(kinds))
	var asking sync.WaitGroup
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	objects := make([]client.Object, len(kinds))
	for i, kind := range kinds {
		objects[i] = newObject(kind)
		asking.Go(func() { errs[i] = api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, objects[i]) })
	}
	asking.Wait()
	for i, err := range errs {
		if err == nil && isOurs(objects[i].GetLabels()) {
			return "", reason.New(codes.FailedPrecondition, reason.Invalid, "%s %s cannot be intercepted: %s — choose another workload", kinds[i], name, ours)
		}
		if err == nil {
			return kinds[i], nil
		}
		if !apierrors.IsNotFound(err) {
			return "", cluster.Explain(err)
		}
	}
	return "", notFound(ctx, cluster, api, namespace, kind, name)
}

// notFound says so, and which names are like it.
func notFound(ctx context.Context, cluster *kube.Cluster, api client.Client, namespace, kind, name string) error {
	what := "workload"
	if kind != "" {
		what = kind
	}
	message := fmt.Sprintf("%s %q not found in namespace %s", what, name, namespace)
	known, err := names(ctx, api, namespace, kind)
	switch {
	case err != nil:
		// Whoever may get but not list still learns that the name is wrong.
	case len(known) == 0 && apierrors.IsNotFound(api.Get(ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{})):
		return reason.New(codes.NotFound, reason.WorkloadNotFound, "namespace %s does not exist — choose another with --namespace", namespace)
	case len(known) == 0:
		message += " — it has none; choose another with --namespace"
	default:
		if similar := Similar(name, known); len(similar) > 0 {
			quoted := make([]string, len(similar))
			for i, s := range similar {
				quoted[i] = fmt.Sprintf("%q", s)
			}
			return reason.New(codes.NotFound, reason.WorkloadNotFound, "%s — did you mean %s?", message, strings.Join(quoted, " or ")).
				With("similar", strings.Join(similar, ","))
		}
		message += " — `sidestep list` shows what there is"
	}
	return reason.New(codes.NotFound, reason.WorkloadNotFound, "%s", message)
}

// names lists the workloads of a namespace, without what belongs to a Deployment.
func names(ctx context.Context, api client.Client, namespace, kind string) ([]string, error) {
	var found []string
	for _, k := range Kinds {
		if kind != "" && k != kind {
			continue
		}
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind(k + "List"))
		if err := api.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, err
		}
		for i := range list.Items {
			if k != "ReplicaSet" || ownerKind(&list.Items[i]) != "Deployment" || kind == "ReplicaSet" {
				found = append(found, list.Items[i].Name)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

func ownerKind(object metav1.Object) string {
	if owner := metav1.GetControllerOfNoCopy(object); owner != nil {
		return owner.Kind
	}
	return ""
}

// Similar are the names that somebody may have meant, best first, three at most.
func Similar(name string, known []string) []string {
	type candidate struct {
		name     string
		distance int
	}
	var candidates []candidate
	for _, k := range known {
		d := distance(name, k)
		near := d <= max(1, len(name)/3)
		part := len(name) >= 3 && (strings.Contains(k, name) || strings.Contains(name, k) && len(k) >= 3)
		if near || part {
			candidates = append(candidates, candidate{k, d})
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return a.distance - b.distance })
	var similar []string
	for _, c := range candidates[:min(3, len(candidates))] {
		similar = append(similar, c.name)
	}
	return similar
}

// distance is the number of characters to insert, delete, replace, or exchange with their neighbour, to make b of a.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
