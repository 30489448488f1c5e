// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// Leave ends an intercept, by its own name or its object's, and returns what it was.
func (r *Registry) Leave(ctx context.Context, name string) (*v1alpha1.Intercept, error) {
	all, _ := r.All()
	var found *v1alpha1.Intercept
	var names []string
	for _, i := range all {
		names = append(names, i.Spec.Name)
		if i.Spec.Name == name || (found == nil && i.Name == name) {
			found = i
		}
	}
	if found == nil {
		if err := r.leaveEnded(name); err != nil {
			return nil, err
		}
		have := "you have none"
		if len(names) > 0 {
			have = "yours are: " + strings.Join(names, ", ")
		}
		return nil, reason.New(codes.NotFound, reason.InterceptNotFound,
			"there is no intercept %q", name).
			Advise("%s", have)
	}
	cluster, err := r.source.Cluster()
	if err != nil {
		return nil, err
	}
	if err := r.delete(ctx, cluster, found); err != nil {
		return nil, cluster.Explain(err)
	}
	return found, nil
}

// leaveEnded answers a request to leave an intercept that has ended already. It returns nil if
// there is none of that name.
func (r *Registry) leaveEnded(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.overNamed(name)
	switch {
	case t == nil:
		return nil
	case t.state == restoring:
		return reason.New(codes.Aborted, reason.InterceptExists,
			"intercept %q is being recreated, since %s", name, t.why).
			Advise("try again in a moment")
	}
	r.dismiss(name)
	r.notify()
	return reason.New(codes.NotFound, reason.InterceptNotFound,
		"intercept %q has ended already: %s", name, t.why).
		Advise("nothing is left to do")
}

// delete deletes an object of this client, but not another object that has its name by now.
func (r *Registry) delete(ctx context.Context, cluster *kube.Cluster, object *v1alpha1.Intercept) error {
	api, err := cluster.Client()
	if err != nil {
		return err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	var options []client.DeleteOption
	if object.UID != "" {
		options = append(options, client.Preconditions{UID: &object.UID})
	} else {
		// The call that created it was never answered, so only the name is known.
		have := &v1alpha1.Intercept{}
		err := api.Get(ctx, client.ObjectKeyFromObject(object), have)
		if apierrors.IsNotFound(err) || (err == nil && !have.Spec.HeldBy(r.client.KeyHash)) {
			return nil
		}
		if err != nil {
			return err
		}
		object = have
	}
	r.leaves(object.UID)
	err = api.Delete(ctx, object.DeepCopy(), options...)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = nil
	}
	r.deleted(object.UID, err)
	return err
}

// LeaveAll ends all intercepts of the client and returns which could not be ended. It asks the API
// for them in all namespaces where there may be some.
func (r *Registry) LeaveAll(ctx context.Context) error {
	cluster, err := r.source.Cluster()
	if err != nil {
		return err
	}
	api, err := cluster.Client()
	if err != nil {
		return err
	}
	r.mu.Lock()
	namespaces := r.namespaces()
	r.mu.Unlock()
	var work sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, namespace := range namespaces {
		work.Go(func() {
			objects, err := r.mine(ctx, cluster, api, namespace)
			if err != nil {
				fail(fmt.Errorf("those in namespace %s: %w", namespace, cluster.Explain(err)))
			}
			for _, object := range objects {
				work.Go(func() {
					if err := r.delete(ctx, cluster, object); err != nil {
						fail(fmt.Errorf("%s: %w", object.Spec.Name, cluster.Explain(err)))
					}
				})
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// mine lists this client's objects in a namespace, including those that only the registry knows.
func (r *Registry) mine(ctx context.Context, cluster *kube.Cluster, api client.Client,
	namespace string) ([]*v1alpha1.Intercept, error) {
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	objects := map[types.UID]*v1alpha1.Intercept{}
	var list v1alpha1.InterceptList
	err := api.List(ctx, &list, client.InNamespace(namespace),
		client.MatchingLabels{names.LabelSession: r.client.Session})
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	for i := range list.Items {
		// This includes objects that this daemon does not know, because the answer to the call was
		// lost.
		if list.Items[i].Spec.HeldBy(r.client.KeyHash) {
			objects[list.Items[i].UID] = &list.Items[i]
		}
	}
	all, _ := r.All()
	for _, i := range all {
		if i.Namespace == namespace {
			objects[i.UID] = i
		}
	}
	found := make([]*v1alpha1.Intercept, 0, len(objects))
	for _, i := range objects {
		found = append(found, i)
	}
	return found, err
}
