// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// ask changes the port that an intercept asks for, and returns the generation of that change.
func (k *kube) ask(t *testing.T, name, port string) int64 {
	t.Helper()
	ic := k.intercept(t, name)
	ic.Spec.Port = port
	ic.Generation++
	require.NoError(t, k.Update(t.Context(), ic))
	return ic.Generation
}

// answers waits for the word about a generation.
func (k *kube) answers(t *testing.T, name string, generation int64, state v1alpha1.State,
	port string) v1alpha1.InterceptStatus {
	t.Helper()
	var st v1alpha1.InterceptStatus
	require.Eventually(t, func() bool {
		st = k.intercept(t, name).Status
		return st.ObservedGeneration == generation && st.State == state && (port == "" || st.Port == port)
	}, patient, often)
	return st
}

// told lists what the node agent was told from its n-th assignment on, each once.
func (a *nodeAgent) told(n int) [][]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all [][]string
	for _, assignment := range a.all[n:] {
		all = append(all, describe(assignment))
	}
	return slices.CompactFunc(all, slices.Equal)
}

func (a *nodeAgent) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

func TestInterceptMovesToAnotherPortWithoutAGap(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	var slow atomic.Bool
	slow.Store(true)
	a := m.agent(t, "node-1", func(r *agentpb.TargetReport) { r.Steering = r.Port == 8080 || !slow.Load() })
	m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", "tcp"))
	k.until(t, "alice", v1alpha1.StateActive)

	before := a.count()
	generation := k.ask(t, "alice", "grpc")
	a.has(t, "p1:8080=alice", "p1:9000=alice")
	k.answers(t, "alice", generation, v1alpha1.StatePending, "grpc")
	slow.Store(false)
	require.NoError(t, a.report())
	k.answers(t, "alice", generation, v1alpha1.StateActive, "grpc")
	a.has(t, "p1:9000=alice")
	assert.Equal(t, [][]string{{"p1:8080=alice", "p1:9000=alice"}, {"p1:9000=alice"}}, a.told(before))

	// Who waits for the port that was left has it then.
	m.laptop(t, "bob", 0)
	k.create(t, asks("bob", "http", "tcp"))
	k.until(t, "bob", v1alpha1.StateActive)
}

func TestMoveThatFailsChangesNothing(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "alice", 0)
	m.laptop(t, "bob", 0)
	m.laptop(t, "carol", 0)
	k.create(t, asks("alice", "http", "tcp"))
	k.until(t, "alice", v1alpha1.StateActive)
	k.create(t, asks("bob", "grpc", "tcp"))
	k.until(t, "bob", v1alpha1.StateActive)
	k.create(t, asks("carol", "http", "tcp"))
	k.until(t, "carol", v1alpha1.StateConflict)

	before := a.count()
	st := k.answers(t, "alice", k.ask(t, "alice", "nope"), v1alpha1.StateInvalid, "")
	assert.Equal(t, "service orders has no port nope; it has: http/80, grpc/9090; "+
		"the containers of Deployment orders have: web/8080, rpc/9000; port http stays intercepted", st.Message)
	st = k.answers(t, "alice", k.ask(t, "alice", "grpc"), v1alpha1.StateConflict, "grpc")
	assert.Equal(t, `port grpc of Deployment orders is intercepted by bob@laptop (intercept "orders"); port http stays intercepted`, st.Message)
	k.answers(t, "alice", k.ask(t, "alice", "http"), v1alpha1.StateActive, "http")
	assert.Empty(t, a.told(before), "the node agent has heard of nothing")
	assert.Equal(t, v1alpha1.StateConflict, k.intercept(t, "carol").Status.State,
		"nobody else got the port meanwhile")

	// A move that waits for another intercept takes place when that one has gone, and then the next
	// one gets the port that became free.
	generation := k.ask(t, "alice", "grpc")
	k.answers(t, "alice", generation, v1alpha1.StateConflict, "grpc")
	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "bob")))
	k.answers(t, "alice", generation, v1alpha1.StateActive, "grpc")
	k.until(t, "carol", v1alpha1.StateActive)
	a.has(t, "p1:9000=alice", "p1:8080=carol")
}
