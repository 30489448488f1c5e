// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// listens makes a wiretap of Deployment orders, of an object with that name.
func listens(holder, name, port, header string) *v1alpha1.Intercept {
	ic := asks(holder, port, header)
	ic.Name, ic.Spec.Name, ic.Spec.Wiretap = name, name, true
	ic.Spec.Client.KeyHash = v1alpha1.WiretapKeyHash(ic.Spec.Client.KeyHash)
	return ic
}

// tappingAgent is a node agent that knows wiretaps.
func (r *running) tappingAgent(t *testing.T, node string) *nodeAgent {
	t.Helper()
	return r.agentSaying(t, &agentpb.Hello{Node: node, Protocol: 1, Wiretaps: true}, "node/"+node,
		func(tr *agentpb.TargetReport) {
			tr.Copies = &agentpb.Copies{Copied: 10, Cut: 2, Dropped: 3}
		})
}

func TestWiretapsAreInNobodysWay(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.tappingAgent(t, "node-1")
	m.laptop(t, "alice", 0)
	m.laptop(t, "bob", 0)
	k.create(t, listens("bob", "early", "http", ""))
	k.until(t, "early", v1alpha1.StateActive)
	k.create(t, asks("alice", "http", "tcp"))
	k.until(t, "alice", v1alpha1.StateActive)
	k.create(t, listens("bob", "late", "http", "tcp"))
	st := k.until(t, "late", v1alpha1.StateActive).Status
	assert.Equal(t, "copies of all TCP connections", st.Intercepting)
	assert.True(t, apimeta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionAccepted))
	a.has(t, "p1:8080=alice", "p1:8080<early", "p1:8080<late")

	k.create(t, asks("bob", "http", "tcp"))
	st = k.until(t, "bob", v1alpha1.StateConflict).Status
	assert.Contains(t, st.Message, "is intercepted by alice@laptop", "not by a wiretap")
	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "alice")))
	k.until(t, "bob", v1alpha1.StateActive)
	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "early")))
	a.has(t, "p1:8080=bob", "p1:8080<late")
}

func TestWiretapsFollowTheirLaptop(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.tappingAgent(t, "node-1")
	l := m.laptop(t, "alice", 1)
	k.create(t, listens("alice", "tap", "http", ""))
	uid := string(k.until(t, "tap", v1alpha1.StateActive).UID)

	go l.echo()
	c, _ := a.open(t, uid)
	assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).GetResult())
	ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key",
		hex.EncodeToString(sessionKey("alice")))
	require.Eventually(t, func() bool {
		reply, err := clientpb.NewClientsClient(l.conn).Nodes(ctx, &clientpb.NodesRequest{})
		require.NoError(t, err)
		all := reply.GetTraffic()
		return len(all) == 1 && all[0].GetInterceptUid() == uid &&
			all[0].GetCopies().GetCopied() == 10 && all[0].GetCopies().GetCut() == 2 &&
			all[0].GetCopies().GetDropped() == 3
	}, patient, often)

	l.cancel()
	a.has(t, "p1:8080<tap!")
	st := k.until(t, "tap", v1alpha1.StateDisconnected).Status
	assert.Equal(t, "the laptop of alice@laptop is not connected; nothing is copied", st.Message)
	m.laptop(t, "alice", 0)
	a.has(t, "p1:8080<tap")
	k.until(t, "tap", v1alpha1.StateActive)
}

func TestNobodyTakesAWiretapForAnIntercept(t *testing.T) {
	t.Run("a node agent that knows none gets none, and the status says so", func(t *testing.T) {
		k := newKube()
		m := start(t, k)
		k.pod(t, k.shop(t), "p1", "node-1")
		old := m.agent(t, "node-1")
		m.laptop(t, "alice", 0)
		m.laptop(t, "bob", 0)
		k.create(t, listens("alice", "tap", "http", ""))
		st := k.until(t, "tap", v1alpha1.StateFailed).Status
		assert.Contains(t, st.Message,
			"pod p1 on node node-1: the node agent is older than the traffic manager and does not know wiretaps")
		k.create(t, asks("bob", "http", ""))
		k.until(t, "bob", v1alpha1.StateActive)
		old.has(t, "p1:8080=bob")
		require.NoError(t, k.Delete(t.Context(), k.intercept(t, "bob")))
		old.has(t)

		young := m.tappingAgent(t, "node-1")
		k.until(t, "tap", v1alpha1.StateActive)
		young.has(t, "p1:8080<tap")
	})
	t.Run("where the definition of Intercepts is too old to keep the word, the laptop counts as away",
		func(t *testing.T) {
			k := newKube()
			m := start(t, k)
			k.pod(t, k.shop(t), "p1", "node-1")
			a := m.tappingAgent(t, "node-1")
			m.laptop(t, "alice", 0)
			pruned := listens("alice", "tap", "http", "")
			pruned.Spec.Wiretap = false
			k.create(t, pruned)
			k.until(t, "tap", v1alpha1.StateDisconnected)
			a.has(t, "p1:8080=tap!")
		})
}
