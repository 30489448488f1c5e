// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// field is a cluster of three nodes and Deployment orders, where the test plays kubelets,
// controllers and node agents, and an intercept whose every status is looked at.
type field struct {
	*kube
	t       *testing.T // the whole test: node agents outlive its parts
	m       *running
	agents  map[string]*nodeAgent
	watched chan struct{} // gets a value after each status

	mu       sync.Mutex
	names    map[string]string          // of pods, by UID
	slow     bool                       // node agents do not get on with pods that they do not steer yet
	steered  map[string]bool            // by the node agents' last word, by UID
	ready    map[string]time.Time       // when a pod became ready, by name
	covered  map[string]time.Time       // when a status first said that it is steered
	statuses []v1alpha1.InterceptStatus // all, in order
	lies     []string
}

var fieldNodes = []string{"node-1", "node-2", "node-3"}

func newField(t *testing.T) (*field, *appsv1.ReplicaSet) {
	k, m, rights := real(t)
	f := &field{t: t, kube: k, m: m, agents: map[string]*nodeAgent{}, watched: make(chan struct{}, 1),
		names:   map[string]string{},
		steered: map[string]bool{}, ready: map[string]time.Time{}, covered: map[string]time.Time{}}
	for _, node := range fieldNodes {
		f.attach(node)
	}
	m.laptop(t, "alice", 0)
	rs := k.shop(t)
	k.create(t, asks("alice", "http", "tcp"))
	f.watch(t, rights)
	return f, rs
}

func (f *field) attach(node string) {
	f.agents[node] = f.m.agentWith(f.t, node, f.token(f.t, "sidestep-nodeagent", node), f.steer)
}

// steer sets how the node agents report on a pod.
func (f *field) steer(r *agentpb.TargetReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slow && !f.steered[r.PodUid] {
		r.Steering, r.Message = false, "looking for the pod's network"
		return
	}
	f.steered[r.PodUid] = true
}

// watch looks at each status that the intercept ever has.
func (f *field) watch(t *testing.T, rights *rest.Config) {
	c, err := client.NewWithWatch(rights, client.Options{Scheme: Scheme()})
	require.NoError(t, err)
	events, err := c.Watch(t.Context(), &v1alpha1.InterceptList{}, client.InNamespace(ns))
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range events.ResultChan() {
			if ic, ok := event.Object.(*v1alpha1.Intercept); ok {
				f.look(&ic.Status, time.Now())
				select {
				case f.watched <- struct{}{}:
				default:
				}
			}
		}
	}()
	t.Cleanup(func() { events.Stop(); <-done })
}

// look checks that a status says nothing that is not so.
func (f *field) look(st *v1alpha1.InterceptStatus, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses = append(f.statuses, *st.DeepCopy())
	steered := map[string]bool{}
	for uid, yes := range f.steered {
		steered[f.names[uid]] = yes
	}
	said := 0
	for _, p := range st.Pods {
		if !p.Steering {
			if st.State == v1alpha1.StateActive {
				f.lies = append(f.lies, "ACTIVE, and of "+p.Name+" the same status says: "+p.Message)
			}
			continue
		}
		said++
		if !steered[p.Name] {
			f.lies = append(f.lies, "steering "+p.Name+", of which no node agent has said so")
		}
		if _, ok := f.covered[p.Name]; !ok {
			f.covered[p.Name] = now
		}
	}
	if want := fmt.Sprintf("%d/%d", said, len(st.Pods)); len(st.Pods) > 0 && st.Coverage != want {
		f.lies = append(f.lies, "coverage "+st.Coverage+" where the pods are "+want)
	}
}

// pods runs pods on the nodes in turn, as a ReplicaSet, a scheduler and kubelets do, and returns
// when they are ready.
func (f *field) runPods(t *testing.T, rs *appsv1.ReplicaSet, nodes []string, names ...string) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(20)
	for i, name := range names {
		p := &corev1.Pod{ObjectMeta: objectMeta(name), Spec: template().Spec}
		p.Labels, p.OwnerReferences, p.Spec.NodeName = template().Labels, ownedBy("ReplicaSet", rs),
			nodes[i%len(nodes)]
		g.Go(func() error {
			if err := f.Create(t.Context(), p); err != nil {
				return err
			}
			f.mu.Lock()
			f.names[string(p.UID)] = name
			f.mu.Unlock()
			p.Status = readyStatus(i)
			// The clock starts before the call: the API server has told others when it returns.
			f.mu.Lock()
			f.ready[name] = time.Now()
			delete(f.covered, name)
			f.mu.Unlock()
			return f.Status().Update(t.Context(), p)
		})
	}
	require.NoError(t, g.Wait())
}

func readyStatus(i int) corev1.PodStatus {
	ip := fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)
	return corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, HostIP: "192.0.2.1",
		HostIPs:    []corev1.HostIP{{IP: "192.0.2.1"}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
}

// end takes pods away: first they are told to, and serve on for a moment, then they are gone.
func (f *field) end(t *testing.T, names ...string) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(20)
	for _, name := range names {
		g.Go(func() error {
			p := &corev1.Pod{ObjectMeta: objectMeta(name)}
			if err := f.Delete(t.Context(), p, client.GracePeriodSeconds(30)); err != nil {
				return err
			}
			return client.IgnoreNotFound(f.Delete(t.Context(), p, client.GracePeriodSeconds(0)))
		})
	}
	require.NoError(t, g.Wait())
}

// says waits until the last status has a state and covers exactly these pods, all of them ready,
// and returns it.
func (f *field) says(t *testing.T, state v1alpha1.State, coverage string,
	pods ...string) v1alpha1.InterceptStatus {
	t.Helper()
	slices.Sort(pods)
	var last v1alpha1.InterceptStatus
	ctx, cancel := context.WithTimeout(t.Context(), 6*patient)
	defer cancel()
	for {
		var names []string
		f.mu.Lock()
		if len(f.statuses) > 0 {
			last = f.statuses[len(f.statuses)-1]
		}
		f.mu.Unlock()
		for _, p := range last.Pods {
			names = append(names, p.Name)
		}
		slices.Sort(names)
		if last.State == state && last.Coverage == coverage && slices.Equal(names, pods) {
			return last
		}
		select {
		case <-f.watched:
		case <-ctx.Done():
			require.Fail(t, "the status does not come", "wanted %s %s of %d pods, have %s %s of %d: %s",
				state, coverage, len(pods), last.State, last.Coverage, len(names), last.Message)
		}
	}
}

// truth says how it went since the last call: whether a status lied, and how long pods were ready
// before a status said that they are covered.
func (f *field) truth(t *testing.T, states ...v1alpha1.State) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	assert.Empty(t, f.lies)
	var lags []time.Duration
	for name, since := range f.ready {
		if at, ok := f.covered[name]; ok {
			lags = append(lags, max(0, at.Sub(since)))
		}
	}
	seen := map[v1alpha1.State]int{}
	for _, st := range f.statuses {
		seen[st.State]++
		assert.Contains(t, states, st.State, st.Message)
	}
	if len(lags) > 0 {
		slices.Sort(lags)
		t.Logf("%d pods: from Ready to a status that covers them: half of them %s, the slowest %s; statuses: %v", len(lags), lags[len(lags)/2], lags[len(lags)-1], seen)
		if len(lags) < 10 { // with more, the API server is the slow one
			assert.Less(t, lags[len(lags)/2], 5*time.Second, "milliseconds where nothing else runs")
		}
	}
	f.lies, f.statuses, f.ready = nil, f.statuses[len(f.statuses)-1:], map[string]time.Time{}
}

func numbered(prefix string, n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%03d", prefix, i))
	}
	return names
}

func TestCoverageFollowsPods(t *testing.T) {
	f, rs := newField(t)
	const active, pending, none = v1alpha1.StateActive, v1alpha1.StatePending, v1alpha1.StateNoPods
	f.says(t, none, "0/0")

	t.Run("scaled from nothing to three, to nothing, to one", func(t *testing.T) {
		f.runPods(t, rs, fieldNodes, "a", "b", "c")
		f.says(t, active, "3/3", "a", "b", "c")
		f.end(t, "a", "b", "c")
		assert.Equal(t, "no pod of Deployment orders is ready", f.says(t, none, "0/0").Message)
		for _, a := range f.agents {
			a.has(t)
		}
		f.runPods(t, rs, fieldNodes, "d")
		f.says(t, active, "1/1", "d")
		f.truth(t, "", active, pending, none)
	})
	t.Run("a rolling restart", func(t *testing.T) {
		f.runPods(t, rs, fieldNodes[1:], "e", "f")
		f.says(t, active, "3/3", "d", "e", "f")
		f.truth(t, active, pending)
		next := rs.DeepCopy()
		next.ObjectMeta = objectMeta("orders-2")
		next.OwnerReferences = rs.OwnerReferences
		require.NoError(t, f.Create(t.Context(), next))
		for i, old := range []string{"d", "e", "f"} {
			f.runPods(t, next, fieldNodes[i:], "new-"+old)
			f.end(t, old)
		}
		f.says(t, active, "3/3", "new-d", "new-e", "new-f")
		f.truth(t, active, pending)
	})
	t.Run("a pod that is evicted and comes up on another node", func(t *testing.T) {
		f.end(t, "new-d")
		f.runPods(t, rs, fieldNodes[2:], "moved")
		st := f.says(t, active, "3/3", "moved", "new-e", "new-f")
		assert.Equal(t, "node-3", st.Pods[0].Node)
		f.agents["node-1"].has(t)
		f.truth(t, active, pending)
	})
	t.Run("a node agent that is slow", func(t *testing.T) { slowAgent(t, f, rs) })
	t.Run("a node that goes away", func(t *testing.T) { lostNode(t, f) })
	t.Run("three hundred pods", func(t *testing.T) {
		names := numbered("many", 300)
		f.runPods(t, rs, fieldNodes, names...)
		all := append([]string{"moved", "new-e", "new-f", "slow"}, names...)
		f.says(t, active, "304/304", all...)
		f.truth(t, active, pending)
		f.end(t, all...)
		f.says(t, none, "0/0")
		f.truth(t, active, pending, none)
	})
}

// slowAgent tests a pod that is ready before it is steered, as pods without a readiness probe are.
func slowAgent(t *testing.T, f *field, rs *appsv1.ReplicaSet) {
	f.mu.Lock()
	f.slow = true
	f.mu.Unlock()
	f.runPods(t, rs, fieldNodes[:1], "slow")
	st := f.says(t, v1alpha1.StatePending, "3/4", "moved", "new-e", "new-f", "slow")
	assert.Contains(t, st.Message, "pod slow: ")
	f.mu.Lock()
	began := f.ready["slow"]
	f.statuses, f.ready = f.statuses[len(f.statuses)-1:], map[string]time.Time{}
	f.mu.Unlock()
	t.Logf("from Ready to a status that is not ACTIVE any more: %s", time.Since(began))

	// Whatever happens to the others, it is not called ACTIVE before the pod is steered.
	f.end(t, "new-e")
	f.says(t, v1alpha1.StatePending, "2/3", "moved", "new-f", "slow")
	f.mu.Lock()
	f.slow = false
	f.mu.Unlock()
	// its assignment makes one node agent report; the other is still at it
	f.runPods(t, rs, fieldNodes[1:], "new-e")
	f.says(t, v1alpha1.StatePending, "3/4", "moved", "new-e", "new-f", "slow")
	f.truth(t, v1alpha1.StatePending)
	require.NoError(t, f.agents["node-1"].report())
	f.says(t, v1alpha1.StateActive, "4/4", "moved", "new-e", "new-f", "slow")
	f.truth(t, v1alpha1.StatePending, v1alpha1.StateActive)
}

// lostNode tests the loss of node-2 with its pods and its node agent.
func lostNode(t *testing.T, f *field) {
	var lost []string
	for _, p := range f.says(t, v1alpha1.StateActive, "4/4", "moved", "new-e", "new-f", "slow").Pods {
		if p.Node == "node-2" {
			lost = append(lost, p.Name)
		}
	}
	require.NotEmpty(t, lost)
	f.agents["node-2"].cancel()
	st := f.says(t, v1alpha1.StatePending, fmt.Sprintf("%d/4", 4-len(lost)), "moved", "new-e", "new-f", "slow")
	assert.Equal(t, fmt.Sprintf("pod %s: no node agent on node node-2", lost[0]),
		strings.TrimSuffix(st.Message, fmt.Sprintf(" (and %d more)", len(lost)-1)))

	// After a while Kubernetes gives up on the node's pods.
	set := func(ready corev1.ConditionStatus) {
		for _, name := range lost {
			p := &corev1.Pod{}
			require.NoError(t, f.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, p))
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready,
				LastTransitionTime: metav1.Now()}}
			require.NoError(t, f.Status().Update(t.Context(), p))
		}
	}
	set(corev1.ConditionFalse)
	left := slices.DeleteFunc([]string{"moved", "new-e", "new-f", "slow"},
		func(name string) bool { return slices.Contains(lost, name) })
	f.says(t, v1alpha1.StateActive, fmt.Sprintf("%d/%d", len(left), len(left)), left...)
	// The node comes back, and its pods before its node agent.
	set(corev1.ConditionTrue)
	f.says(t, v1alpha1.StatePending, fmt.Sprintf("%d/4", len(left)), "moved", "new-e", "new-f", "slow")
	f.attach("node-2")
	f.says(t, v1alpha1.StateActive, "4/4", "moved", "new-e", "new-f", "slow")
	f.truth(t, v1alpha1.StateActive, v1alpha1.StatePending)
}
