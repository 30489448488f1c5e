// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/internal/rollout"
)

// rolloutPatience is how long the manager's start waits for Rollouts to be read. They are a foreign
// kind, and no reason not to start.
const rolloutPatience = 10 * time.Second

// rollouts are the Rollouts of clusters that have them. Argo Rollouts may be installed and removed
// while the manager runs. So the manager watches the definition of the kind, and the kind while it
// is served.
type rollouts struct {
	client     client.WithWatch
	log        *slog.Logger
	definition cache.SharedIndexInformer
	handler    cache.ResourceEventHandler
	told       cache.ResourceEventHandlerRegistration
	changed    chan struct{} // the definition has changed

	mu     sync.Mutex
	served *servedRollouts // nil: the cluster has no such kind
}

// servedRollouts is the informer of the kind, from when it is served until it no longer is.
type servedRollouts struct {
	informer cache.SharedIndexInformer
	cancel   context.CancelFunc
	done     chan struct{}
}

func newRollouts(c client.WithWatch, log *slog.Logger) (*rollouts, error) {
	list, object := &unstructured.UnstructuredList{}, &unstructured.Unstructured{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1",
		Kind: "CustomResourceDefinitionList"})
	object.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1",
		Kind: "CustomResourceDefinition"})
	r := &rollouts{
		client: c, log: log, changed: make(chan struct{}, 1),
		definition: newInformer(c, list, object, cache.Indexers{}, rollout.Definition),
	}
	return r, r.definition.SetTransform(stripDefinition)
}

// stripDefinition removes the schemas, which are large.
func stripDefinition(obj any) (any, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
		u.SetAnnotations(nil)
		versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
		for _, v := range versions {
			if version, ok := v.(map[string]any); ok {
				delete(version, "schema")
			}
		}
		// it fails only if spec is not an object, and then there are no versions
		_ = unstructured.SetNestedSlice(u.Object, versions, "spec", "versions")
	}
	return obj, nil
}

// listen sets the handler of changes of Rollouts. It is called once, before run.
func (r *rollouts) listen(handler cache.ResourceEventHandler) (err error) {
	r.handler = handler
	r.told, err = r.definition.AddEventHandler(handlers(func(_, _ *unstructured.Unstructured) {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}))
	return err
}

// run follows the definition until ctx is done.
func (r *rollouts) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.definition.RunWithContext(ctx) })
	for {
		select {
		case <-r.changed:
			if r.isServed() {
				r.start(ctx)
			} else {
				r.stop()
			}
		case <-ctx.Done():
			// What is known stays: the end of the manager must not look like the end of the
			// Rollouts.
			if s := r.current(); s != nil {
				<-s.done
			}
			return
		}
	}
}

// isServed reports whether the cluster serves the kind in the version that is known here.
func (r *rollouts) isServed() bool {
	for _, obj := range r.definition.GetStore().List() {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok || u.GetName() != rollout.Definition || u.GetDeletionTimestamp() != nil {
			continue
		}
		return holds(u, []string{"status", "conditions"},
			map[string]any{"type": "Established", "status": "True"}) &&
			holds(u, []string{"spec", "versions"},
				map[string]any{"name": rollout.GroupVersion.Version, "served": true})
	}
	return false
}

// holds reports whether a list in the object has an item with all of these values.
func holds(u *unstructured.Unstructured, path []string, values map[string]any) bool {
	items, _, _ := unstructured.NestedSlice(u.Object, path...)
	for _, item := range items {
		have, _ := item.(map[string]any)
		same := have != nil
		for name, value := range values {
			same = same && have[name] == value
		}
		if same {
			return true
		}
	}
	return false
}

func (r *rollouts) start(ctx context.Context) {
	if r.current() != nil {
		return
	}
	s := &servedRollouts{informer: newInformer(r.client, rollout.ListOf(), rollout.Object(),
		cache.Indexers{}, ""), done: make(chan struct{})}
	err := s.informer.SetTransform(strip)
	if err == nil {
		_, err = s.informer.AddEventHandler(r.handler)
	}
	if err != nil {
		r.log.Error("cannot follow Rollouts", "error", err)
		return
	}
	ctx, s.cancel = context.WithCancel(ctx)
	go func() { defer close(s.done); s.informer.RunWithContext(ctx) }()
	r.set(s)
	r.log.Info("Rollouts can be intercepted")
}

// stop forgets all Rollouts.
func (r *rollouts) stop() {
	s := r.current()
	if s == nil {
		return
	}
	r.set(nil)
	s.cancel()
	<-s.done
	for _, gone := range s.informer.GetStore().List() {
		r.handler.OnDelete(gone)
	}
	r.log.Info("Rollouts cannot be intercepted any more: their definition is gone")
}

// wait returns when all Rollouts have been read, or after rolloutPatience.
func (r *rollouts) wait(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, rolloutPatience)
	defer cancel()
	read := func() bool {
		if !r.told.HasSynced() {
			return false
		}
		s := r.current()
		return s == nil && !r.isServed() || s != nil && s.informer.HasSynced()
	}
	if !cache.WaitForCacheSync(ctx.Done(), read) {
		r.log.Warn("Rollouts have not been read: intercepts of them wait", "patience", rolloutPatience)
	}
}

func (r *rollouts) get(namespace, name string) *rollout.Rollout {
	if s := r.current(); s != nil {
		return get[rollout.Rollout](s.informer, namespace, name)
	}
	return nil
}

func (r *rollouts) current() *servedRollouts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served
}

func (r *rollouts) set(s *servedRollouts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served = s
}
