// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
)

func TestYoungerAgentTakesOver(t *testing.T) {
	w := newWorld(t)
	w.steeringByRun(t)
	load := newLoad(t, w, 4)
	w.mu.Lock()
	w.report = nil
	w.mu.Unlock()
	stopYoung := w.run(t)
	w.steering(t, 1)
	w.expect(t, "me", "laptop")
	w.mu.Lock()
	attaches := w.attaches
	w.mu.Unlock()
	assert.Equal(t, 2, attaches, "agents have fought for the manager")
	stopYoung()
	w.eventually(t, "me", "laptop")
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.attaches >= 4
	}, 30*time.Second, 10*time.Millisecond, "the older one asks, and attaches")
	w.eventually(t, "me", "laptop")
	load.stop(t)
}

func TestOlderAgentDoesNotSteerWhatTheYoungerHasLetGo(t *testing.T) {
	w := newWorld(t)
	w.steeringByRun(t)
	stopYoung := w.run(t)
	w.steering(t, 1)
	last := w.assign()
	w.await(t, "nothing", func(r *agentpb.Report) bool {
		return r.GetRevision() == last &&
			len(r.GetTargets()) == 0
	})
	w.eventually(t, "me", "app")
	time.Sleep(1500 * time.Millisecond) // the older one looks after its pods once a second
	w.expect(t, "me", "app")
	stopYoung()
	w.nothingLeft(t)
}

func TestAgentsWithoutPodsDoNotFightForTheManager(t *testing.T) {
	w := newWorld(t)
	w.assign()
	w.run(t)
	attached := func(n int) func() bool {
		return func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.attaches == n && w.report != nil
		}
	}
	require.Eventually(t, attached(1), 30*time.Second, 10*time.Millisecond)
	stopYoung := w.run(t)
	require.Eventually(t, attached(2), 30*time.Second, 10*time.Millisecond)
	refusals := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.refused
	}
	require.Eventually(t, func() bool { return refusals() >= 3 }, 30*time.Second, 10*time.Millisecond)
	assert.True(t, attached(2)(), "nobody else has attached")
	stopYoung()
	require.Eventually(t, attached(4), 30*time.Second, 10*time.Millisecond, "the older one is back")
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
}
