// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/names"
)

// portTimeout bounds how long a connection waits for its local port to be known. The node agent
// waits for two seconds.
const portTimeout = 1500 * time.Millisecond

// maxWatchPause bounds the pause between attempts to watch.
const maxWatchPause = 5 * time.Second

// watch follows this client's intercepts in one namespace.
type watch struct {
	registry  *Registry
	namespace string
	stop      context.CancelFunc
	again     chan struct{} // list again, now
	synced    chan struct{} // closed after the first list
}

// watch starts to watch a namespace unless it is watched already. It is called with mu held.
func (r *Registry) watch(namespace string) *watch {
	if w, ok := r.watching[namespace]; ok {
		return w
	}
	w := &watch{registry: r, namespace: namespace, again: make(chan struct{}, 1), synced: make(chan struct{})}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(r.ctx)
	r.watching[namespace] = w
	r.watches.Go(func() { w.run(ctx) })
	return w
}

// Refresh lists everything again. After a sleep or an outage the watches may be dead without having
// noticed.
func (r *Registry) Refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.watching {
		select {
		case w.again <- struct{}{}:
		default:
		}
	}
}

// Sync waits until everything has been listed once, or ctx ends.
func (r *Registry) Sync(ctx context.Context) error {
	r.mu.Lock()
	waits := make(map[string]chan struct{}, len(r.watching))
	for namespace, w := range r.watching {
		waits[namespace] = w.synced
	}
	r.mu.Unlock()
	for namespace, synced := range waits {
		select {
		case <-synced:
		case <-ctx.Done():
			return fmt.Errorf("list the intercepts in namespace %s: %w", namespace, context.Cause(ctx))
		}
	}
	return nil
}

func (w *watch) run(ctx context.Context) {
	pace := backoff.Backoff{First: 100 * time.Millisecond, Most: maxWatchPause}
	for ctx.Err() == nil {
		begun := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		w.registry.trouble(w.namespace, err)
		if err == nil {
			pace.Reset()
			continue
		}
		if time.Since(begun) > maxWatchPause {
			pace.Reset()
		}
		delay := pace.Next()
		w.registry.log.Warn("cannot watch intercepts", "namespace", w.namespace, "error", err, "retry", delay)
		backoff.Sleep(ctx, delay, w.again)
	}
}

// follow lists and then watches until the watch ends, as it does every few minutes, or Refresh asks
// for a new list.
func (w *watch) follow(ctx context.Context) error {
	cluster, err := w.registry.source.Cluster()
	if err != nil {
		return err
	}
	api, err := cluster.Client()
	if err != nil {
		return err
	}
	version, refresh, err := w.listOrRefresh(ctx, cluster.Call, api)
	if refresh {
		return nil
	}
	if err != nil {
		return cluster.Explain(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seconds := int64(300 + rand.IntN(300))
	events, err := api.Watch(ctx, &v1alpha1.InterceptList{}, client.InNamespace(w.namespace),
		client.MatchingLabels{names.LabelSession: w.registry.client.Session},
		&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: version, TimeoutSeconds: &seconds}})
	if err != nil {
		return cluster.Explain(err)
	}
	defer events.Stop()
	for {
		select {
		case event, ok := <-events.ResultChan():
			if !ok {
				return nil
			}
			if event.Type == kubewatch.Error {
				return apierrors.FromObject(event.Object)
			}
			w.take(event)
		case <-w.again:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *watch) take(event kubewatch.Event) {
	object, ok := event.Object.(*v1alpha1.Intercept)
	if !ok {
		return
	}
	switch event.Type {
	case kubewatch.Added, kubewatch.Modified:
		w.registry.put(object)
	case kubewatch.Deleted:
		w.registry.remove(object.UID, endedBySomebody)
	}
}

func (w *watch) list(ctx context.Context,
	call func(context.Context) (context.Context, context.CancelFunc), api client.Client) (string, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	w.registry.mu.Lock()
	begun := w.registry.clock
	w.registry.mu.Unlock()
	var list v1alpha1.InterceptList
	err := api.List(ctx, &list, client.InNamespace(w.namespace),
		client.MatchingLabels{names.LabelSession: w.registry.client.Session})
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		// The CustomResourceDefinition is gone: sidestep was removed from the cluster, and all
		// intercepts with it.
		w.registry.replace(w.namespace, nil, begun, endedWithKind)
		w.markSynced()
	}
	if err != nil {
		return "", err
	}
	w.registry.trouble(w.namespace, nil)
	w.registry.replace(w.namespace, list.Items, begun, endedBySomebody)
	w.markSynced()
	return list.ResourceVersion, nil
}

// listOrRefresh lists, unless Refresh asks for a new list meanwhile. This one may wait for an
// answer over a dead connection.
func (w *watch) listOrRefresh(ctx context.Context,
	call func(context.Context) (context.Context, context.CancelFunc),
	api client.Client) (version string, refresh bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listed := make(chan struct{})
	go func() {
		defer close(listed)
		version, err = w.list(ctx, call, api)
	}()
	select {
	case <-listed:
	case <-w.again:
		refresh = true
		cancel()
		<-listed
	}
	return version, refresh, err
}

func (w *watch) markSynced() {
	select {
	case <-w.synced:
	default:
		close(w.synced)
	}
}

// replace replaces what is known about a namespace with a list. begun is the clock's value when the
// list was begun: the list may lack what was added since. What is gone has ended for the reason
// why.
func (r *Registry) replace(namespace string, items []v1alpha1.Intercept, begun uint64, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed := make(map[types.UID]bool, len(items))
	for i := range items {
		listed[items[i].UID] = true
		r.putLocked(&items[i])
	}
	for _, t := range r.presents() {
		if t.namespace == namespace && t.added <= begun && !listed[t.uid] {
			r.vanish(t, why)
		}
	}
	r.compare(namespace)
	r.forgetNamespace(namespace)
}

// trouble notes why the intercepts of a namespace cannot be followed. Nil means that they can.
func (r *Registry) trouble(namespace string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch _, watching := r.watching[namespace]; {
	case err == nil:
		delete(r.troubles, namespace)
	case watching:
		r.troubles[namespace] = err
	}
}

// Trouble returns why what is known about intercepts may be stale, nil if it is not.
func (r *Registry) Trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, namespace := range slices.Sorted(maps.Keys(r.troubles)) {
		return r.troubles[namespace]
	}
	return nil
}
