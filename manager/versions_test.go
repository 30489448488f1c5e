// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// fromTheFuture adds a field to a message that this version does not know.
func fromTheFuture[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000,
		protowire.BytesType), "of the future"))
	return m
}

func TestNodeAgentsOfOtherVersions(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	k.pod(t, rs, "p2", "node-2")
	m.laptop(t, "alice", 0)

	// knows nothing of epochs, boots and what came since
	older := m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 1, Version: "v0.0.1"}, "node/node-1")
	newer := m.agentSaying(t,
		fromTheFuture(&agentpb.Hello{Node: "node-2", Protocol: 1, Version: "v99.0.0"}), "node/node-2",
		func(r *agentpb.TargetReport) { fromTheFuture(r) })
	require.NoError(t, newer.stream.Send(fromTheFuture(&agentpb.AgentMessage{})),
		"a kind of message that the manager does not know")
	k.create(t, asks("alice", "http", "tcp"))
	assert.Equal(t, "2/2", k.until(t, "alice", v1alpha1.StateActive).Status.Coverage)
	older.has(t, "p1:8080=alice")
	newer.has(t, "p2:8080=alice")

	// A client that speaks another protocol is refused, and the intercept's status says so.
	older.cancel()
	k.until(t, "alice", v1alpha1.StatePending)
	refused := m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 2, Version: "v99.0.0"}, "node/node-1")
	assert.Equal(t, codes.FailedPrecondition, status.Code(<-refused.ended))
	require.Eventually(t, func() bool {
		return k.intercept(t, "alice").Status.Message == "pod p1: the traffic manager (v0.0.0-dev) speaks protocol 1 and the node agent (v99.0.0) protocol 2: install the same version of both"
	}, patient, often)
	m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 1, Version: "v1.0.0"}, "node/node-1")
	assert.Equal(t, "2/2", k.until(t, "alice", v1alpha1.StateActive).Status.Coverage)
}
