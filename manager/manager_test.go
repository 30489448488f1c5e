// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestInterceptBecomesActiveAndFollowsItsPods(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	p2 := k.pod(t, rs, "p2", "node-2")
	one := m.agent(t, "node-1")
	l := m.laptop(t, "alice", 0)
	assert.EqualValues(t, 3600, l.hello.GraceSeconds)

	k.create(t, asks("alice", "http", "alice"))
	st := k.until(t, "alice", v1alpha1.StatePending).Status
	require.Eventually(t, func() bool {
		st = k.intercept(t,
			"alice").Status
		return st.Coverage == "1/2"
	}, patient, often)
	assert.Equal(t, "pod p2: no node agent on node node-2", st.Message)
	one.has(t, "p1:8080=alice")

	two := m.agent(t, "node-2")
	two.has(t, "p2:8080=alice")
	st = k.until(t, "alice", v1alpha1.StateActive).Status
	assert.Equal(t, v1alpha1.InterceptStatus{
		ObservedGeneration: 1, State: v1alpha1.StateActive, Service: "orders", Port: "http",
		ServicePort: 80, Container: "app",
		Intercepting: `HTTP requests that match header("x-dev") ~= regexp("alice")`, Coverage: "2/2",
		Pods: []v1alpha1.PodStatus{
			{Name: "p1", Node: "node-1", Port: 8080, Steering: true},
			{Name: "p2", Node: "node-2", Port: 8080, Steering: true},
		},
		Conditions: st.Conditions,
	}, st)
	for _, kind := range []string{v1alpha1.ConditionResolved, v1alpha1.ConditionAccepted,
		v1alpha1.ConditionConnected, v1alpha1.ConditionReady} {
		assert.True(t, apimeta.IsStatusConditionTrue(st.Conditions, kind), kind)
	}

	k.pod(t, rs, "p3", "node-1")
	one.has(t, "p1:8080=alice", "p3:8080=alice")
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "3/3" },
		patient, often)
	require.NoError(t, k.Delete(t.Context(), p2))
	two.has(t)
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "2/2" },
		patient, often)

	one.cancel()
	st = k.until(t, "alice", v1alpha1.StatePending).Status
	assert.Equal(t, "0/2", st.Coverage)
	m.agent(t, "node-1")
	k.until(t, "alice", v1alpha1.StateActive)

	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "alice")))
	two.has(t)
}

func TestStatusSaysWhyAPodCannotBeSteered(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	m.laptop(t, "alice", 0)
	a := m.agent(t, "node-1", func(r *agentpb.TargetReport) {
		r.Steering, r.Failed, r.Message = false, true, "the pod uses the host's network"
	})
	k.create(t, asks("alice", "http", "tcp"))
	st := k.until(t, "alice", v1alpha1.StateFailed).Status
	assert.Equal(t, "pod p1 on node node-1: the pod uses the host's network", st.Message)
	assert.Equal(t, "all TCP connections", st.Intercepting)
	assert.Equal(t, []v1alpha1.PodStatus{{Name: "p1", Node: "node-1", Port: 8080,
		Message: "the pod uses the host's network"}}, st.Pods)
	ready := apimeta.FindStatusCondition(st.Conditions, v1alpha1.ConditionReady)
	assert.Equal(t, "PodFailed", ready.Reason)

	say := func(steer func(*agentpb.TargetReport)) {
		a.mu.Lock()
		a.steer = steer
		a.mu.Unlock()
		require.NoError(t, a.report())
	}
	say(func(r *agentpb.TargetReport) { r.Steering, r.Message = false, "the probe has not come back yet" })
	assert.Equal(t, "pod p1: the probe has not come back yet",
		k.until(t, "alice", v1alpha1.StatePending).Status.Message)
	say(func(*agentpb.TargetReport) {})
	k.until(t, "alice", v1alpha1.StateActive)
}

func TestAnActiveInterceptSaysWhyNothingCanMatch(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	k.pod(t, rs, "p2", "node-2")
	m.laptop(t, "alice", 0)
	const why = "the port speaks TLS"
	m.agent(t, "node-1")
	a := m.agent(t, "node-2", func(r *agentpb.TargetReport) { r.Message = why })
	k.create(t, asks("alice", "http", ""))
	st := k.until(t, "alice", v1alpha1.StateActive).Status
	assert.Equal(t, why, st.Message)
	assert.Equal(t, "2/2", st.Coverage)
	assert.Equal(t, []string{"", why}, []string{st.Pods[0].Message, st.Pods[1].Message})
	assert.True(t, apimeta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionReady))

	a.mu.Lock()
	a.steer = func(*agentpb.TargetReport) {}
	a.mu.Unlock()
	require.NoError(t, a.report())
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Message == "" }, patient, often)
}

func TestLaptopThatGoesAwayLeavesItsRequestsToTheApp(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	l := m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StateActive)

	l.cancel()
	a.has(t, "p1:8080=alice!")
	st := k.until(t, "alice", v1alpha1.StateDisconnected).Status
	assert.Equal(t, "the laptop of alice@laptop is not connected; its requests go to the app", st.Message)
	assert.True(t, apimeta.IsStatusConditionFalse(st.Conditions, v1alpha1.ConditionConnected))
	assert.True(t, apimeta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionAccepted),
		"it keeps its place")

	m.laptop(t, "alice", 0)
	a.has(t, "p1:8080=alice")
	k.until(t, "alice", v1alpha1.StateActive)
}

func TestInterceptEndsWhenItsLaptopHasBeenAwayForTheGracePeriod(t *testing.T) {
	k := newKube()
	m := start(t, k, func(o *Options) { o.SessionGrace = 300 * time.Millisecond })
	k.pod(t, k.shop(t), "p1", "node-1")
	l := m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", "alice"), asks("bob", "http", "bob"))
	gone := func(name string) func() bool {
		return func() bool {
			return apierrors.IsNotFound(k.Get(t.Context(),
				types.NamespacedName{Namespace: ns, Name: name}, &v1alpha1.Intercept{}))
		}
	}
	require.Eventually(t, gone("bob"), patient, often)
	assert.False(t, gone("alice")(), "her laptop is there")
	l.cancel()
	require.Eventually(t, gone("alice"), patient, often)
	events := &corev1.EventList{}
	require.Eventually(t, func() bool {
		return k.List(t.Context(), events) == nil &&
			len(events.Items) == 2
	}, patient, often)
	assert.Equal(t, "Ended: the laptop of bob@laptop has not been connected for 300ms",
		events.Items[indexOf(events, "bob")].Message)
}

func indexOf(events *corev1.EventList, name string) int {
	for i, e := range events.Items {
		if e.InvolvedObject.Name == name {
			return i
		}
	}
	return 0
}

func TestOverlapIsRefusedAndComesInWhenTheHolderLeaves(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "alice", 0)
	m.laptop(t, "bob", 0)
	k.create(t, asks("alice", "http", "same"))
	k.until(t, "alice", v1alpha1.StateActive)
	k.create(t, asks("bob", "80", "same"))
	st := k.until(t, "bob", v1alpha1.StateConflict).Status
	assert.Equal(t, `port http of Deployment orders is intercepted by alice@laptop (intercept "orders")`, st.Message)
	assert.True(t, apimeta.IsStatusConditionFalse(st.Conditions, v1alpha1.ConditionAccepted))
	assert.Empty(t, st.Pods)
	a.has(t, "p1:8080=alice")

	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "alice")))
	k.until(t, "bob", v1alpha1.StateActive)
	a.has(t, "p1:8080=bob")
}

func TestConflictByWayOfAnotherWorkloadNamesIt(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.shop(t) // no pods: they would meet all the same
	m.laptop(t, "alice", 0)
	m.laptop(t, "bob", 0)
	rs := asks("alice", "http", "tcp")
	rs.Spec.Workload = v1alpha1.WorkloadReference{Kind: "ReplicaSet", Name: "orders-1"}
	k.create(t, rs)
	assert.Equal(t, "no pod of ReplicaSet orders-1 is ready",
		k.until(t, "alice", v1alpha1.StateNoPods).Status.Message)
	k.create(t, asks("bob", "http", "tcp"))
	assert.Equal(t, `port http of Deployment orders is intercepted by alice@laptop (intercept "orders") by way of ReplicaSet orders-1`,
		k.until(t, "bob", v1alpha1.StateConflict).Status.Message)
}

func TestInvalidInterceptSaysWhyAndRecovers(t *testing.T) {
	k := newKube()
	m := start(t, k)
	m.laptop(t, "alice", 0)
	m.agent(t, "node-1")
	bad := asks("bob", "http", "")
	expr := "("
	bad.Spec.HTTP = &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Regex: &expr}}}
	k.create(t, asks("alice", "", "alice"), bad)
	assert.Equal(t, `there is no Deployment "orders" in namespace shop`,
		k.until(t, "alice", v1alpha1.StateInvalid).Status.Message)
	assert.Contains(t, k.until(t, "bob", v1alpha1.StateInvalid).Status.Message, "x-dev")

	rs := k.shop(t)
	require.Eventually(t, func() bool {
		return k.intercept(t, "alice").Status.Message == "service orders has 2 ports: http/80, grpc/9090 — use --port LOCAL:PORT to choose one"
	}, patient, often)
	svc := &corev1.Service{}
	require.NoError(t, k.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: "orders"}, svc))
	both := svc.Spec.Ports
	svc.Spec.Ports = both[:1]
	require.NoError(t, k.Update(t.Context(), svc))
	k.until(t, "alice", v1alpha1.StateNoPods)
	k.pod(t, rs, "p1", "node-1")
	k.until(t, "alice", v1alpha1.StateActive)

	// A port that is added later does not make an accepted intercept ambiguous.
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 81})
	require.NoError(t, k.Update(t.Context(), svc))
	p2 := k.pod(t, rs, "p2", "node-1")
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "2/2" },
		patient, often)
	assert.Equal(t, v1alpha1.StateActive, k.intercept(t, "alice").Status.State)

	// A pod that is no longer ready is steered on, and not counted.
	p2.Status.Conditions[0].Status = corev1.ConditionFalse
	require.NoError(t, k.Status().Update(t.Context(), p2))
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "1/1" },
		patient, often)
}

func TestRestartedManagerLetsGoOfNothing(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	m.agent(t, "node-1")
	m.laptop(t, "bob", 0)
	// The younger holds the port, since it was first; after a restart that must still be so.
	young, old := asks("bob", "http", "tcp"), asks("alice", "http", "tcp")
	old.CreationTimestamp = metav1.NewTime(young.CreationTimestamp.Add(-time.Hour))
	k.create(t, young)
	k.until(t, "bob", v1alpha1.StateActive)
	k.create(t, old)
	k.until(t, "alice", v1alpha1.StateConflict)
	m.end()
	assert.Equal(t, v1alpha1.StateActive, k.intercept(t, "bob").Status.State,
		"a manager that stops says nothing about others")

	k.blocked.Store(true) // pods cannot be read for now
	m = start(t, k)
	a := m.agent(t, "node-1")
	m.laptop(t, "bob", 0)
	code, body := get(t, m.http+"/readyz")
	assert.Equal(t, 503, code)
	assert.Contains(t, body, "still reading the cluster")
	select {
	case err := <-a.ended:
		require.NoError(t, err)
	case <-time.After(200 * time.Millisecond):
	}
	assert.Nil(t, a.targets(), "no assignment before everything is resolved")
	k.blocked.Store(false)
	close(k.release)
	a.has(t, "p1:8080=bob")
	for _, assignment := range a.all {
		assert.NotEmpty(t, describe(assignment), "never told to let go")
	}
	m.ready(t)
	assert.Equal(t, v1alpha1.StateConflict, k.intercept(t, "alice").Status.State)
	k.until(t, "bob", v1alpha1.StateActive)
}

func TestAnotherNodeAgentOfTheNodeTakesOver(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	m.laptop(t, "alice", 0)
	first := m.agent(t, "node-1")
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StateActive)
	second := m.agent(t, "node-1",
		func(r *agentpb.TargetReport) { r.Steering, r.Failed, r.Message = false, true, "new" })
	second.has(t, "p1:8080=alice")
	assert.ErrorContains(t, <-first.ended, "another node agent of this node has connected")
	k.until(t, "alice", v1alpha1.StateFailed)
}

func TestOlderNodeAgentIsRefusedWhileTheYoungerIsThere(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	m.laptop(t, "alice", 0)
	old := m.agentBorn(t, "node-1", 1)
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StateActive)
	young := m.agentBorn(t, "node-1", 2)
	young.has(t, "p1:8080=alice")
	for range 3 {
		err := <-old.ended
		assert.Equal(t, codes.AlreadyExists, status.Code(err), "%v", err)
		old = m.agentBorn(t, "node-1", 1)
	}
	assert.Equal(t, codes.AlreadyExists, status.Code(<-old.ended))
	k.until(t, "alice", v1alpha1.StateActive)
	assert.Len(t, young.ended, 0, "the younger one was not disturbed")
	young.cancel()
	<-young.ended
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		old = m.agentBorn(t, "node-1", 1)
		select {
		case err := <-old.ended:
			assert.NoError(c, err)
		case <-time.After(100 * time.Millisecond):
		}
	}, patient, often)
	old.has(t, "p1:8080=alice")
}

func TestStatusThatAnotherHasWrittenIsPutRight(t *testing.T) {
	k := newKube()
	start(t, k)
	k.create(t, asks("alice", "http", ""))
	ic := k.until(t, "alice", v1alpha1.StateInvalid)
	ic.Status.State = v1alpha1.StateActive
	require.NoError(t, k.Status().Update(t.Context(), ic))
	k.until(t, "alice", v1alpha1.StateInvalid)
}

func TestHealthAndMetrics(t *testing.T) {
	k := newKube()
	m := start(t, k)
	m.ready(t)
	m.agent(t, "node-1").has(t)
	m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StateInvalid)
	code, _ := get(t, m.http+"/healthz")
	assert.Equal(t, 200, code)
	m.measures(t, `sidestep_manager_intercepts{state="INVALID"} 1`,
		`sidestep_manager_intercepts{state="ACTIVE"} 0`, "sidestep_manager_agents 1",
		"sidestep_manager_sessions 1", "sidestep_manager_tunnels_open 0",
		"sidestep_manager_reconcile_duration_seconds_count 1",
		`sidestep_manager_status_writes_total{result="written"} 1`,
		`sidestep_manager_status_writes_total{result="failed"} 0`)
}
