// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// api is an API server with one intercept. It counts updates of status, and fails those for which
// fail is set.
type api struct {
	client.WithWatch
	fail    atomic.Pointer[error]
	updates atomic.Int32
}

func newAPI(t *testing.T, st v1alpha1.InterceptStatus) (*api, *v1alpha1.Intercept, *writer) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders",
		UID: "u1", Generation: 1}, Status: st}
	a := &api{}
	a.WithWatch = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(ic).WithObjects(
		ic).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, obj client.Object,
			opts ...client.SubResourceUpdateOption) error {
			a.updates.Add(1)
			if err := a.fail.Load(); err != nil {
				return *err
			}
			return c.SubResource(sub).Update(ctx, obj, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object,
			opts ...client.DeleteOption) error {
			var o client.DeleteOptions
			o.ApplyOptions(opts)
			// the fake does not look
			if now := a.read(t); now != nil && o.Preconditions != nil && now.UID != *o.Preconditions.UID {
				return apierrors.NewConflict(schema.GroupResource{Resource: "intercepts"}, now.Name,
					errors.New("another UID"))
			}
			return c.Delete(ctx, obj, opts...)
		},
	}).Build()
	w := newWriter(a, slog.New(slog.DiscardHandler),
		func(types.NamespacedName) *v1alpha1.Intercept { return a.read(t) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return a, a.read(t), w
}

func (a *api) read(t *testing.T) *v1alpha1.Intercept {
	ic := &v1alpha1.Intercept{}
	err := a.Get(context.WithoutCancel(t.Context()),
		types.NamespacedName{Namespace: "shop", Name: "orders"}, ic)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return ic
}

func (a *api) state(t *testing.T) v1alpha1.State { return a.read(t).Status.State }

func state(s v1alpha1.State) v1alpha1.InterceptStatus {
	status := metav1.ConditionFalse
	if s == v1alpha1.StateActive {
		status = metav1.ConditionTrue
	}
	return v1alpha1.InterceptStatus{State: s,
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: "R"}}}
}

func until(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, time.Millisecond)
}

func TestStatesThatPassQuicklyAreNotWritten(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	w.set(ic, state(v1alpha1.StatePending))
	w.set(ic, state(v1alpha1.StateActive))
	until(t, func() bool { return a.state(t) == v1alpha1.StateActive })
	w.set(ic, state(v1alpha1.StateActive))
	time.Sleep(2 * gather)
	assert.EqualValues(t, 1, a.updates.Load())
	assert.Equal(t, 1, w.states()[v1alpha1.StateActive])
}

func TestStatusIsWrittenThoughAnotherWroteInBetween(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	other := ic.DeepCopy()
	other.Labels = map[string]string{"team": "a"}
	require.NoError(t, a.Update(t.Context(), other))
	w.set(ic, state(v1alpha1.StateActive))
	until(t, func() bool { return a.state(t) == v1alpha1.StateActive })
	assert.Equal(t, "a", a.read(t).Labels["team"])
	assert.EqualValues(t, 2, a.updates.Load(), "one that met the other's write, and one that did not")
}

func TestWriteThatFailsIsTriedAgain(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	err := errors.New("etcd is away")
	a.fail.Store(&err)
	w.set(ic, state(v1alpha1.StateActive))
	until(t, func() bool { return a.updates.Load() >= 2 })
	a.fail.Store(nil)
	until(t, func() bool { return a.state(t) == v1alpha1.StateActive })
}

func TestTransitionTimeChangesWithTheConditionOnly(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	w.set(ic, state(v1alpha1.StateActive))
	until(t, func() bool { return a.state(t) == v1alpha1.StateActive })
	since := a.read(t).Status.Conditions[0].LastTransitionTime
	assert.False(t, since.IsZero())
	next := state(v1alpha1.StateActive)
	next.Coverage = "2/2"
	w.set(ic, next)
	until(t, func() bool { return a.read(t).Status.Coverage == "2/2" })
	assert.Equal(t, since, a.read(t).Status.Conditions[0].LastTransitionTime)
}

func TestActiveInterceptIsNotCalledPendingRightAfterAStart(t *testing.T) {
	a, ic, w := newAPI(t, state(v1alpha1.StateActive))
	w.mu.Lock()
	w.start = time.Now()
	w.mu.Unlock()
	w.set(ic, state(v1alpha1.StateDisconnected))
	w.set(ic, state(v1alpha1.StatePending))
	time.Sleep(3 * gather)
	assert.Equal(t, v1alpha1.StateActive, a.state(t))
	w.set(ic, state(v1alpha1.StateConflict))
	until(t, func() bool { return a.state(t) == v1alpha1.StateConflict })
}

func TestInterceptIsNotRemovedWhenItsLaptopComesBackInTime(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	w.mu.Lock() // nothing is worked on before both have been said
	w.wants[ic.UID] = &want{base: ic, remove: "the laptop is away"}
	w.mu.Unlock()
	w.set(ic, state(v1alpha1.StateActive))
	until(t, func() bool { return a.state(t) == v1alpha1.StateActive })
	w.remove(ic, "the laptop is away")
	until(t, func() bool { return a.read(t) == nil })
}

func TestAnotherInterceptOfTheNameIsLeftAlone(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	require.NoError(t, a.Delete(t.Context(), ic.DeepCopy()))
	other := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "u2"}}
	require.NoError(t, a.Create(t.Context(), other))
	w.set(ic, state(v1alpha1.StateActive))
	w.remove(ic, "the laptop is away")
	until(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.queue.Len() == 0 })
	time.Sleep(2 * gather)
	require.NotNil(t, a.read(t))
	assert.EqualValues(t, "u2", a.read(t).UID)
	assert.Empty(t, a.state(t))
}

func TestCountsAloneAreNotWrittenEachTime(t *testing.T) {
	a, ic, w := newAPI(t, v1alpha1.InterceptStatus{})
	counted := func(counts ...int64) v1alpha1.InterceptStatus {
		st := state(v1alpha1.StateActive)
		for i, n := range counts {
			st.Unanswered = append(st.Unanswered, v1alpha1.Unanswered{Reason: string(rune('A' + i)), Count: n})
		}
		return st
	}
	w.set(ic, counted(1))
	until(t, func() bool { return len(a.read(t).Status.Unanswered) == 1 })
	w.set(ic, counted(2))
	w.observe(a.read(t))
	time.Sleep(3 * gather)
	assert.EqualValues(t, 1, a.updates.Load())
	w.set(ic, counted(3, 1))
	until(t, func() bool { return len(a.read(t).Status.Unanswered) == 2 })
	assert.EqualValues(t, 3, a.read(t).Status.Unanswered[0].Count, "a new reason brings the counts along")
}
