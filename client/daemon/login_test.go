// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

func TestLaptopLogsInForAsLongAsItsSessionLasts(t *testing.T) {
	w := newWorld(t)
	w.manager.Proof = true
	w.start()
	w.connect()
	require.Len(t, w.api.Logins(), 1)
	login := w.api.Logins()[0]
	assert.Equal(t, clienttest.Namespace, login.Namespace)
	assert.Equal(t, clienttest.User, login.Spec.User)
	assert.Equal(t, []string{"developers"}, login.Spec.Groups)
	assert.WithinDuration(t, time.Now().Add(12*time.Hour), login.Spec.Expires.Time, time.Minute)

	t.Run("a daemon that is started anew uses the same", func(t *testing.T) {
		w.stop()
		w.start()
		w.eventually(func() bool { return w.status().GetConnected() }, "it connects")
		require.Len(t, w.api.Logins(), 1)
		assert.Equal(t, login.Name, w.api.Logins()[0].Name)
	})
	t.Run("one that the manager does not accept is replaced", func(t *testing.T) {
		w.api.Remove(t, &v1alpha1.Login{ObjectMeta: login.ObjectMeta})
		w.manager.Kill()
		w.manager.Start(t)
		w.eventually(func() bool { return len(w.api.Logins()) == 1 && w.status().GetConnected() }, "it logs in")
	})
	_, err := w.daemon.Quit(t.Context(), &daemonpb.Empty{})
	require.NoError(t, err)
	assert.Empty(t, w.api.Logins())
}

func TestLaptopWithoutALoginGoesOnIfTheManagerLetsIt(t *testing.T) {
	t.Run("a cluster that knows none", func(t *testing.T) {
		w := newWorld(t)
		w.api.NoLogins = true
		w.start()
		assert.Empty(t, w.connect().GetMessage())
	})
	forbid := func(c clienttest.Call) bool { return c.Resource == "logins" }
	t.Run("a user who may not", func(t *testing.T) {
		w := newWorld(t)
		w.api.Deny(forbid)
		w.start()
		assert.Contains(t, w.connect().GetMessage(), "the traffic manager does not know who you are: "+
			"dev may not create logins.sidestep.dev in namespace sidestep")
	})
	t.Run("a manager that does not", func(t *testing.T) {
		w := newWorld(t)
		w.api.Deny(forbid)
		w.manager.Proof = true
		w.start()
		_, err := w.daemon.Connect(t.Context(), w.connectRequest())
		assert.Equal(t, reason.NotProven, reason.Of(err))
		assert.Empty(t, w.api.Logins())
	})
}

func TestALoginThatIsOlderThanThePolicyIsReplacedBeforeTheUserHearsOfIt(t *testing.T) {
	w := newWorld(t)
	w.manager.Proof, w.manager.Forgets = true, 1
	w.start()
	w.connect()
	require.Len(t, w.api.Logins(), 1)

	w = newWorld(t)
	w.manager.Proof, w.manager.Forgets = true, 100
	w.start()
	_, err := w.daemon.Connect(t.Context(), w.connectRequest())
	assert.Equal(t, reason.NotProven, reason.Of(err), "a second one is not replaced")
	assert.Empty(t, w.api.Logins())
}
