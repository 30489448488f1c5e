// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/daemon"
)

// laptop is another one, for the cluster of w, with a daemon of its own process.
func (w *world) laptop() *world {
	other := &world{T: w.T, api: w.api, manager: w.manager, kubeconfig: w.kubeconfig}
	dir := w.TempDir()
	other.options = daemon.Options{Socket: dir + "/run/d.sock", CacheDir: dir + "/cache", LogFile: dir +
		"/log/daemon.log"}
	other.spawn()
	other.connect()
	return other
}

func (w *world) objectOf(session string) *v1alpha1.Intercept {
	w.Helper()
	for _, i := range w.api.Intercepts() {
		if i.Spec.Client.Session == session {
			return &i
		}
	}
	require.Fail(w, "no intercept of that session")
	return nil
}

func TestTwoLaptopsOfOneUser(t *testing.T) {
	w := newWorld(t)
	desk, train := w.laptop(), w.laptop()
	for greeting, laptop := range map[string]*world{"desk ": desk, "train": train} {
		laptop.mustIntercept(&daemonpb.InterceptRequest{Name: "orders",
			LocalPort: laptop.echo(greeting), Mechanism: "http", AutoHeader: true})
	}
	for greeting, laptop := range map[string]*world{"desk ": desk, "train": train} {
		st := laptop.status()
		require.Len(t, st.GetIntercepts(), 1, "each has its own, of the same name")
		got, err := laptop.says(w.objectOf(st.GetSession()), 5)
		require.NoError(t, err)
		assert.Equal(t, greeting, got)
	}
	_, err := desk.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
	require.NoError(t, err)
	assert.Equal(t, train.status().GetSession(), w.object().Spec.Client.Session, "the other's stays")
	_, err = train.daemon.Disconnect(t.Context(), &daemonpb.Empty{})
	require.NoError(t, err)
	assert.Empty(t, w.api.Intercepts())
	assert.Empty(t, desk.status().GetEnded())
}
