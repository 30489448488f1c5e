// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/lab"
)

// underLoad has both nodes' clients send mixed requests, each on a new connection, while kill
// strikes two seconds in. kill returns when the victim is dead, and restarted when its successor
// runs. Requests that were begun after the death must not fail, unmatched requests must never
// stray, and matched ones must reach the laptop again within five seconds of the restart.
func underLoad(t *testing.T, s *scene, kill func() (dead, restarted time.Time)) {
	t.Helper()
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	type outcome struct {
		summary *load.Summary
		err     error
	}
	running := make(chan outcome, 2)
	for node := range 2 {
		go func() {
			summary, err := s.Load(t.Context(), node, "http://orders", "--duration", "18s", "-c", "8",
				"--rate", "200", "--matched", "0.25", "-H", "x-user: ann")
			running <- outcome{summary, err}
		}()
	}
	time.Sleep(2 * time.Second) // the load is meant to have been running for a while
	dead, restarted := kill()
	for range 2 {
		o := <-running
		require.NoError(t, o.err)
		for _, failure := range o.summary.Failures.First {
			assert.False(t, failure.Time.After(dead), "a request begun %s after the death failed: %s",
				failure.Time.Sub(dead), failure.Error)
		}
		assert.Zero(t, o.summary.Strayed.Count)
		last := time.Duration(0)
		if o.summary.Missed.Last != nil {
			last = o.summary.Missed.Last.Time.Sub(restarted)
			assert.Less(t, last, 5*time.Second, "matching traffic came back late")
		}
		t.Logf("%d requests, %d failed that were in flight, %d of %d matched went to the app, the last %s after the restart",
			o.summary.Requests, o.summary.Failures.Count, o.summary.Missed.Count,
			o.summary.MatchedTotal, last.Round(time.Millisecond))
		assert.NotZero(t, o.summary.MatchedToLaptop)
	}
}

func testKillNodeAgent(t *testing.T, s *scene) {
	needsLocal(t, s)
	underLoad(t, s, func() (dead, restarted time.Time) {
		var killed []time.Time
		for _, node := range []string{"node1", "node2"} {
			killOnNode(t, s, node, "sidestep-nodeagent")
			killed = append(killed, time.Now())
		}
		return killed[1], awaitRestart(t, s, "app.kubernetes.io/component=nodeagent", killed[0])
	})
}

func testKillManager(t *testing.T, s *scene) {
	needsLocal(t, s)
	underLoad(t, s, func() (dead, restarted time.Time) {
		pods, err := s.Pods(t.Context(), "sidestep", "app.kubernetes.io/component=manager")
		require.NoError(t, err)
		require.NotEmpty(t, pods)
		killOnNode(t, s, pods[0].Node, "sidestep-manager")
		dead = time.Now()
		return dead, awaitRestart(t, s, "app.kubernetes.io/component=manager", dead)
	})
}

func testKillDaemon(t *testing.T, s *scene) {
	underLoad(t, s, func() (dead, restarted time.Time) {
		killDaemon(t, s.ann)
		dead = time.Now()
		sidestep(t, s.ann, "status") // starts a daemon, which finds its session
		return dead, time.Now()
	})
}

func needsLocal(t *testing.T, s *scene) {
	t.Helper()
	if !s.Local() {
		t.Skip("processes can be killed on the nodes of the local cluster only")
	}
}

// killOnNode kills a program on a node, whose processes are its own, and waits until it is gone:
// its sockets are closed by whichever of its threads ends last.
func killOnNode(t *testing.T, s *scene, node, program string) {
	t.Helper()
	script := fmt.Sprintf(`pid=$(pidof %s) || exit 1; kill -9 $pid; while [ -e /proc/$pid/ns/net ] || [ "$(ls /proc/$pid/task 2>/dev/null | wc -l)" -gt 1 ]; do :; done`, program)
	_, err := lab.Output(s.OnNode(t.Context(), node, "sh", "-c", script))
	require.NoError(t, err)
}

// awaitRestart waits until the selected pods' containers were all started after the given time, and
// returns when the last was.
func awaitRestart(t *testing.T, s *scene, selector string, after time.Time) time.Time {
	t.Helper()
	var last time.Time
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		text, err := s.Kubectl(ctx, "-n", "sidestep", "get", "pods", "-l", selector, "-o",
			"jsonpath={.items[*].status.containerStatuses[*].state.running.startedAt}")
		if err != nil {
			return err
		}
		last = time.Time{}
		for _, field := range strings.Fields(text) {
			started, err := time.Parse(time.RFC3339, field)
			if err != nil {
				return err
			}
			if started.Before(after.Truncate(time.Second)) {
				return fmt.Errorf("a container runs since %s", field)
			}
			if started.After(last) {
				last = started
			}
		}
		if last.IsZero() {
			return fmt.Errorf("no container runs")
		}
		return nil
	}))
	return last
}
