// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

func TestWiretap(t *testing.T) {
	t.Run("copies reach the local port until leave", func(t *testing.T) {
		w := connected(t)
		port := w.echo("hello")
		info := w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: port,
			Mechanism: "http", Wiretap: true, Existing: "none"})
		assert.True(t, info.GetWiretap())
		assert.Equal(t, "ACTIVE", info.GetState())
		object := w.object()
		assert.True(t, object.Spec.Wiretap)
		assert.Nil(t, object.Spec.HTTP)
		got, err := w.says(object, 5)
		require.NoError(t, err)
		assert.Equal(t, "hello", got)

		left, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		assert.True(t, left.GetLeft().GetWiretap())
		assert.Empty(t, w.api.Intercepts())
	})
	t.Run("looks to a manager that knows none like an intercept of a laptop that is away", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("")})
		intercept := w.object()
		_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo(""), Wiretap: true})
		assert.NotEqual(t, intercept.Spec.Client.KeyHash, w.object().Spec.Client.KeyHash)
		assert.True(t, w.object().Spec.HeldBy(intercept.Spec.Client.KeyHash))
	})
	t.Run("is not made where the cluster is too old for it", func(t *testing.T) {
		w := newWorld(t)
		w.manager.NoWiretaps = true
		w.start()
		w.connect()
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", Wiretap: true})
		assert.Equal(t, reason.VersionSkew, reason.Of(err))
		assert.ErrorContains(t, err, "older than this sidestep and does not know wiretaps")

		w = connected(t)
		w.api.NoWiretaps = true
		_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", Wiretap: true})
		assert.Equal(t, reason.VersionSkew, reason.Of(err))
		assert.ErrorContains(t, err, "the cluster's definition of Intercepts is older")
		assert.Empty(t, w.api.Intercepts())
	})
	t.Run("and an intercept do not become one another", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo(""), Wiretap: true})
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("")})
		assert.ErrorContains(t, err,
			`intercept "orders" already exists and takes copies of all TCP connections`)
		assert.Equal(t, reason.InterceptExists, reason.Of(err))
		assert.True(t, w.object().Spec.Wiretap)
	})
	t.Run("says what becomes of copies that nobody takes", func(t *testing.T) {
		w := connected(t)
		port := w.unusedPort()
		_, said, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: port, Wiretap: true})
		require.NoError(t, err)
		assert.Contains(t, said, fmt.Sprintf(
			"warning: nothing listens on 127.0.0.1:%d yet: until something does, copies are dropped", port))
	})
	t.Run("is listed as one", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "tap", Workload: "orders",
			LocalPort: w.echo(""), Wiretap: true})
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: w.echo("")})
		for filter, want := range map[string][]string{"wiretapped": {"orders"},
			"intercepted": {"stock"}, "held": {"orders", "stock"}} {
			reply, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{Filter: filter})
			require.NoError(t, err)
			var names []string
			for _, wl := range reply.GetWorkloads() {
				names = append(names, wl.GetName())
			}
			assert.ElementsMatch(t, want, names, filter)
		}
	})
	t.Run("that a node agent is too old for says so, and is not made", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(clienttest.State(v1alpha1.StateFailed,
			"pod orders-0 on node node1: the node agent is older"))
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", Wiretap: true})
		assert.ErrorContains(t, err, "the node agent is older")
		assert.Empty(t, w.api.Intercepts())
	})
}
