// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/manager/carry/connections"
	"sidestep.dev/sidestep/manager/carry/parking"
	"sidestep.dev/sidestep/manager/decide/plan"
)

type owners map[string]plan.Owner

func (o owners) Owner(_, interceptUID, _ string) (plan.Owner, bool) {
	owner, ok := o[interceptUID]
	return owner, ok
}

type nobody struct{ asked string }

func (n *nobody) Take(_ context.Context, keyHash string, _ time.Duration) (*parking.Stream, error) {
	n.asked = keyHash
	return nil, parking.ErrAbsent
}

func TestALaptopIsToldWhatThePlanSays(t *testing.T) {
	sessions := &nobody{}
	r := New(owners{"uid": {KeyHash: "alice", Namespace: "shop", Name: "orders", Pod: "orders-0"}}, sessions,
		&connections.Table{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	open := &tunnelpb.Open{InterceptUid: "uid", InterceptNamespace: "bank", InterceptName: "vault",
		Pod: "vault-0", PodUid: "other", ToPort: 22, RemoteAddr: "192.0.2.1:1"}
	_, _, result, _ := r.find(t.Context(), "node", open)
	assert.Equal(t, tunnelpb.Opened_NO_CLIENT, result)
	assert.Equal(t, "alice", sessions.asked)
	require.Equal(t, "shop/orders/orders-0", open.InterceptNamespace+"/"+open.InterceptName+"/"+open.Pod)
	assert.Empty(t, open.PodUid)
	assert.Zero(t, open.ToPort)
	assert.Equal(t, "192.0.2.1:1", open.RemoteAddr)

	_, _, result, _ = r.find(t.Context(), "node", &tunnelpb.Open{InterceptUid: "unknown"})
	assert.Equal(t, tunnelpb.Opened_UNKNOWN, result)
}
