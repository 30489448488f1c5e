// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestLaptopsAndMetricsTellHowEachNodeSteers(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	k.pod(t, rs, "p2", "node-9")
	a := m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 1, Version: "v1.2.3",
		Kernel: "6.12.48"}, "node/node-1")
	m.agent(t, "node-2")
	l := m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StatePending) // node-9 has no agent
	require.NoError(t, a.stream.Send(
		&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Report{Report: &agentpb.Report{
			Revision: 1, Datapath: &agentpb.Datapath{Name: "tcx", Reason: "chosen by --datapath=tc"},
		}}}))
	m.measures(t,
		`sidestep_manager_agent_info{datapath="tcx",kernel="6.12.48",node="node-1",reason="chosen by --datapath=tc",version="v1.2.3"} 1`,
		`sidestep_manager_agent_info{datapath="none",kernel="",node="node-2",reason="",version=""} 1`,
		`sidestep_manager_agents 2`,
	)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key",
		hex.EncodeToString(sessionKey("alice")))
	reply, err := clientpb.NewClientsClient(l.conn).Nodes(ctx, &clientpb.NodesRequest{})
	require.NoError(t, err)
	var told []string
	for _, n := range reply.GetAgents() {
		told = append(told, n.String())
	}
	require.Len(t, told, 3, told)
	first := reply.GetAgents()[0]
	assert.Equal(t, []string{"node-1", "v1.2.3", "6.12.48", "tcx", "chosen by --datapath=tc"},
		[]string{first.GetNode(), first.GetVersion(), first.GetKernel(), first.GetDatapath(),
			first.GetReason()})
	assert.True(t, first.GetAttached())
	assert.True(t, reply.GetAgents()[1].GetAttached())
	assert.Equal(t, "node-9", reply.GetAgents()[2].GetNode())
	assert.False(t, reply.GetAgents()[2].GetAttached(), "no agent, and an intercepted pod")

	stranger := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key",
		hex.EncodeToString(sessionKey("bob")))
	_, err = clientpb.NewClientsClient(l.conn).Nodes(stranger, &clientpb.NodesRequest{})
	assert.Equal(t, codes.FailedPrecondition, status.Code(err))
	_, err = clientpb.NewClientsClient(l.conn).Nodes(t.Context(), &clientpb.NodesRequest{})
	assert.Equal(t, codes.Unauthenticated, status.Code(err))
}

func TestLaptopsAreToldWhatWasCountedForTheirIntercepts(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	for _, n := range []string{"1", "2"} {
		k.pod(t, rs, "p"+n, "node-"+n)
		m.agent(t, "node-"+n, func(r *agentpb.TargetReport) {
			r.Traffic = &agentpb.Traffic{Opened: 12,
				Closed: 5, SentBytes: 1000}
		})
	}
	l := m.laptop(t, "alice", 0)
	other := m.laptop(t, "bob", 0)
	k.create(t, asks("alice", "http", ""))
	mine := k.until(t, "alice", v1alpha1.StateActive)
	told := func(l *laptop, who string) []*clientpb.InterceptTraffic {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key",
			hex.EncodeToString(sessionKey(who)))
		reply, err := clientpb.NewClientsClient(l.conn).Nodes(ctx, &clientpb.NodesRequest{})
		require.NoError(t, err)
		return reply.GetTraffic()
	}
	got := told(l, "alice")
	require.Len(t, got, 1)
	assert.Equal(t, string(mine.UID), got[0].GetInterceptUid())
	assert.Equal(t, (&agentpb.Traffic{Opened: 24, Closed: 10, SentBytes: 2000}).String(),
		got[0].GetTraffic().String())
	assert.Empty(t, told(other, "bob"))
}

func TestRequestsThatTheLaptopDoesNotAnswerAreTold(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	for _, n := range []string{"1", "2"} {
		k.pod(t, rs, "p"+n, "node-"+n)
		m.agent(t, "node-"+n, func(r *agentpb.TargetReport) {
			answered := uint64(7)
			r.Answered = &answered
			r.Unanswered = []*agentpb.Unanswered{{Reason: agentpb.Unanswered_LOCAL_TLS, Count: 2}}
		})
	}
	l := m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "http", ""))
	k.until(t, "alice", v1alpha1.StateActive)
	var st v1alpha1.InterceptStatus
	require.Eventually(t, func() bool {
		st = k.intercept(t, "alice").Status
		return len(st.Unanswered) == 1
	}, patient, often)
	assert.Equal(t, "LocalTLS", st.Unanswered[0].Reason)
	assert.WithinDuration(t, time.Now(), st.Unanswered[0].Last.Time, time.Minute)
	assert.Equal(t, v1alpha1.StateActive, st.State, "it is intercepted all the same")
	answered := apimeta.FindStatusCondition(st.Conditions, v1alpha1.ConditionAnswered)
	require.NotNil(t, answered)
	assert.Equal(t, []string{"False", "LocalTLS"}, []string{string(answered.Status), answered.Reason})
	assert.Contains(t, answered.Message, "speaks only TLS")

	ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key",
		hex.EncodeToString(sessionKey("alice")))
	reply, err := clientpb.NewClientsClient(l.conn).Nodes(ctx, &clientpb.NodesRequest{})
	require.NoError(t, err)
	require.Len(t, reply.GetTraffic(), 1)
	assert.EqualValues(t, 14, reply.GetTraffic()[0].GetAnswered())
	require.Len(t, reply.GetTraffic()[0].GetUnanswered(), 1)
	assert.EqualValues(t, 4, reply.GetTraffic()[0].GetUnanswered()[0].GetCount())
}
