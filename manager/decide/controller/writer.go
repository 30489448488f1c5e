// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/names"
)

const (
	writers = 8
	// gather is how long a status waits for further changes, unless a person may be waiting for it.
	gather = 50 * time.Millisecond
	// settle is how long after a start an active intercept keeps its state while node agents and
	// laptops are missing: they are reconnecting.
	settle = 3 * time.Second
	// recheck is the delay before a status that another has written is corrected. During a rollout
	// a second manager has its own view. Answering it at once would make the two write without end.
	recheck = 5 * time.Second
	// counting is how long a status waits in which only counts have changed, so that an intercept
	// whose laptop answers nothing is not written each second.
	counting   = 10 * time.Second
	retryFirst = 200 * time.Millisecond
	retryLast  = 10 * time.Second
)

// Results of writes, as metrics call them.
const (
	written    = "written"
	conflicted = "conflict"
	failed     = "failed"
)

// writer writes statuses to the API, and deletes intercepts.
type writer struct {
	client  client.Client
	log     *slog.Logger
	current func(types.NamespacedName) *v1alpha1.Intercept
	queue   workqueue.TypedDelayingInterface[types.UID]
	writes  *prometheus.CounterVec
	start   time.Time

	mu    sync.Mutex
	wants map[types.UID]*want
}

// want is what has to be written about an intercept.
type want struct {
	base    *v1alpha1.Intercept // the newest version of the object that is known
	status  v1alpha1.InterceptStatus
	seen    bool            // this manager itself has found it active
	recheck bool            // another has written the status
	remove  string          // why it has to be deleted
	pause   backoff.Backoff // after failures
}

func newWant(base *v1alpha1.Intercept) *want {
	return &want{base: base, pause: backoff.Backoff{First: retryFirst, Most: retryLast}}
}

func newWriter(c client.Client, log *slog.Logger,
	current func(types.NamespacedName) *v1alpha1.Intercept) *writer {
	w := &writer{
		client: c, log: log, current: current, wants: map[types.UID]*want{},
		queue: workqueue.NewTypedDelayingQueue[types.UID](),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestep_manager_status_writes_total", Help: "Writes of an intercept's status, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{written, conflicted, failed} {
		w.writes.WithLabelValues(result)
	}
	return w
}

// set sets what the status has to be.
func (w *writer) set(ic *v1alpha1.Intercept, st v1alpha1.InterceptStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.wants[ic.UID]
	if d == nil {
		d = newWant(ic)
		w.wants[ic.UID] = d
	}
	d.remove = ""
	if ic.Generation > d.base.Generation {
		d.base = ic
	}
	if apiequality.Semantic.DeepEqual(d.status, st) {
		return
	}
	wait := time.Duration(0)
	if sameButCounts(&d.status, &st) {
		wait = counting
	}
	d.status = st
	d.seen = d.seen || st.State == v1alpha1.StateActive
	w.queue.AddAfter(ic.UID, max(wait, w.delay(d)))
}

// delay returns how long a status waits. It is short for what people wait for.
func (w *writer) delay(d *want) time.Duration {
	was, is := d.base.Status.State, d.status.State
	switch is {
	case v1alpha1.StatePending, v1alpha1.StateDisconnected:
		if left := settle - time.Since(w.start); left > 0 && was == v1alpha1.StateActive && !d.seen {
			return left
		}
		return gather
	}
	if was == is {
		return gather
	}
	return 0
}

// observe compares a status that has appeared in the API.
func (w *writer) observe(ic *v1alpha1.Intercept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.wants[ic.UID]
	if d == nil || d.recheck {
		return
	}
	if want := merged(ic, &d.status); sameButCounts(&want, &ic.Status) { // counts are written when they are due
		return
	}
	d.recheck = true
	w.queue.AddAfter(ic.UID, recheck)
}

// remove orders the deletion of the intercept.
func (w *writer) remove(ic *v1alpha1.Intercept, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.wants[ic.UID]
	if d == nil {
		d = newWant(ic)
		w.wants[ic.UID] = d
	}
	d.remove = why
	w.queue.Add(ic.UID)
}

func (w *writer) forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wants, uid)
}

func (w *writer) states() map[v1alpha1.State]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := map[v1alpha1.State]int{}
	for _, s := range []v1alpha1.State{
		v1alpha1.StatePending, v1alpha1.StateActive, v1alpha1.StateNoPods, v1alpha1.StateDisconnected,
		v1alpha1.StateConflict, v1alpha1.StateInvalid, v1alpha1.StateFailed,
	} {
		counts[s] = 0
	}
	for _, d := range w.wants {
		counts[d.status.State]++
	}
	return counts
}

func (w *writer) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				uid, shutdown := w.queue.Get()
				if shutdown || ctx.Err() != nil {
					return
				}
				w.work(ctx, uid)
				w.queue.Done(uid)
			}
		})
	}
	wg.Wait()
}

func (w *writer) work(ctx context.Context, uid types.UID) {
	w.mu.Lock()
	d := w.wants[uid]
	if d == nil {
		w.mu.Unlock()
		return
	}
	if d.recheck {
		d.recheck = false
		if now := w.current(key(d.base)); now != nil && now.UID == uid {
			d.base = now
		}
	}
	base, st, remove := d.base, d.status, d.remove
	w.mu.Unlock()

	var err error
	if remove != "" {
		err = w.delete(ctx, base, remove)
	} else {
		base, err = w.write(ctx, base, &st)
	}
	if err != nil && ctx.Err() == nil {
		w.log.Warn("cannot write to the API", "intercept", key(base).String(), "error", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if d = w.wants[uid]; d == nil {
		return
	}
	d.base = base
	if err == nil {
		d.pause.Reset()
		return
	}
	w.queue.AddAfter(uid, d.pause.Next())
}

// write writes the status if it differs, and returns the object as it is then.
func (w *writer) write(ctx context.Context, base *v1alpha1.Intercept,
	st *v1alpha1.InterceptStatus) (*v1alpha1.Intercept, error) {
	for attempt := 0; ; attempt++ {
		next := merged(base, st)
		if apiequality.Semantic.DeepEqual(base.Status, next) {
			return base, nil
		}
		obj := base.DeepCopy()
		obj.Status = next
		err := w.client.Status().Update(ctx, obj)
		switch {
		case err == nil:
			w.writes.WithLabelValues(written).Inc()
			return obj, nil
		case apierrors.IsNotFound(err):
			return base, nil
		case apierrors.IsConflict(err) && attempt < 5:
			w.writes.WithLabelValues(conflicted).Inc()
			live := &v1alpha1.Intercept{}
			if err := w.client.Get(ctx, key(base), live); err != nil {
				return base, client.IgnoreNotFound(err)
			}
			if live.UID != base.UID {
				return base, nil
			}
			base = live
		default:
			w.writes.WithLabelValues(failed).Inc()
			return base, err
		}
	}
}

// merged returns the status with the transition times of base's conditions that have not changed.
func merged(base *v1alpha1.Intercept, st *v1alpha1.InterceptStatus) v1alpha1.InterceptStatus {
	next := *st.DeepCopy()
	next.Conditions = base.DeepCopy().Status.Conditions
	for _, c := range st.Conditions {
		meta.SetStatusCondition(&next.Conditions, c)
	}
	return next
}

// delete deletes an intercept whose laptop is gone, and creates an Event with the reason.
func (w *writer) delete(ctx context.Context, ic *v1alpha1.Intercept, why string) error {
	uid := ic.UID
	err := w.client.Delete(ctx, ic.DeepCopy(), client.Preconditions{UID: &uid})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone already, or another object has its name
	}
	if err != nil {
		return err
	}
	w.log.Info("intercept ended", "intercept", key(ic).String(), "holder", ic.Spec.Client.Holder, "reason", why)
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: ic.Name + ".", Namespace: ic.Namespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "Intercept", Namespace: ic.Namespace,
			Name: ic.Name, UID: ic.UID,
		},
		Type: corev1.EventTypeNormal, Reason: "SessionGone", Message: "Ended: " + why,
		Source: corev1.EventSource{Component: names.Manager}, FirstTimestamp: now,
		LastTimestamp: now, Count: 1,
	}
	if err := w.client.Create(ctx, event); err != nil {
		w.log.Warn("cannot leave an event", "intercept", key(ic).String(), "error", err)
	}
	return nil
}
