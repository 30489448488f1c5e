// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/lab"
)

// loading runs a load in the background, one a node, and hands the summaries out when both have
// ended.
func loading(t *testing.T, s *scene, args ...string) (wait func() []*load.Summary) {
	t.Helper()
	type outcome struct {
		summary *load.Summary
		err     error
	}
	running := make(chan outcome, 2)
	for node := range 2 {
		go func() {
			summary, err := s.Load(t.Context(), node, args...)
			running <- outcome{summary, err}
		}()
	}
	return func() []*load.Summary {
		t.Helper()
		var all []*load.Summary
		for range 2 {
			o := <-running
			require.NoError(t, o.err)
			all = append(all, o.summary)
		}
		return all
	}
}

func testGRPCByCall(t *testing.T, s *scene) {
	serve(t, s.ann, "greeter", "127.0.0.1:9000")
	intercept(t, s.ann, "greeter", "--port", "9000", "--http-header", "x-user=ann")
	for _, mode := range [][]string{nil, {"--keep-alive"}} {
		args := append([]string{"grpc://greeter:9000", "-n", "1000", "-c", "16", "--matched", "0.3",
			"-H", "x-user: ann"}, mode...)
		for _, summary := range loading(t, s, args...)() {
			assertSplit(t, summary)
			assert.NotZero(t, summary.MatchedToLaptop)
		}
	}
}

func testOpenConnections(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	wait := loading(t, s, "http://orders", "--keep-alive", "--duration", "8s", "-c", "16", "--rate",
		"200", "--matched", "0.125", "-H", "x-user: ann")
	time.Sleep(2 * time.Second) // connections are meant to be open and in use
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	active := time.Now()
	for _, summary := range wait() {
		assert.Zero(t, summary.Failures.Count, "%+v", summary.Failures)
		assert.Zero(t, summary.Strayed.Count, "%+v", summary.Strayed)
		assert.NotZero(t, summary.MatchedToLaptop)
		if last := summary.Missed.Last; assert.NotNil(t, last, "nothing was open before") {
			assert.Less(t, last.Time.Sub(active), 500*time.Millisecond,
				"a matched request on a connection that was open before went to the app")
		}
	}
}

func testClientAddress(t *testing.T, s *scene) {
	pods, err := s.Pods(t.Context(), lab.Namespace, "app=orders")
	require.NoError(t, err)
	clients, err := s.Pods(t.Context(), lab.Namespace, "app=client")
	require.NoError(t, err)
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	for _, pod := range pods {
		answer, err := s.Call(t.Context(), "http://"+pod.IP+":8080")
		require.NoError(t, err)
		remote, err := netip.ParseAddrPort(answer.RemoteAddr)
		require.NoError(t, err)
		assert.Equal(t, clients[0].IP, remote.Addr().Unmap().String(),
			"what the app on %s sees as its client", pod.Node)
	}
}

// testUpgrade exchanges all node agents under load, for ones that steer in the other way, and back.
func testUpgrade(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	for _, datapath := range []string{"tc", "auto"} {
		wait := loading(t, s, "http://orders", "--duration", "25s", "-c", "8", "--rate", "100",
			"--matched", "0.25", "-H", "x-user: ann")
		sidestep(t, s.admin, "helm", "upgrade", "--reuse-values", "--set", "nodeagent.datapath="+datapath)
		_, err := s.Kubectl(t.Context(), "-n", "sidestep", "rollout", "status",
			"daemonset/sidestep-nodeagent", "--timeout=60s")
		require.NoError(t, err)
		renewed := time.Now()
		for _, summary := range wait() {
			assert.Zero(t, summary.Failures.Count, "%+v", summary.Failures)
			assert.Zero(t, summary.Strayed.Count, "%+v", summary.Strayed)
			t.Logf("node agents exchanged for ones with --datapath=%s: %d requests, %d of %d matched went to the app", datapath,
				summary.Requests, summary.Missed.Count, summary.MatchedTotal)
			if datapath == "tc" {
				assertMostly(t, summary)
			} else if last := summary.Missed.Last; last != nil {
				assert.Less(t, last.Time.Sub(renewed), 5*time.Second)
			}
		}
		want := map[string]string{"tc": "tc", "auto": "sk_lookup"}[datapath]
		status := sidestep(t, s.ann, "status", "--wide")
		assert.GreaterOrEqual(t, strings.Count(status, want), 2, "both nodes say how they steer:\n%s", status)
		answers, err := s.Load(t.Context(), 0, "http://orders", "-n", "400", "-c", "16", "--matched",
			"0.5", "-H", "x-user: ann")
		require.NoError(t, err)
		if datapath == "tc" {
			assertMostly(t, answers)
		} else {
			assertSplit(t, answers)
		}
	}
}

// assertMostly is assertSplit for TC, which leaves a connection to the app if it follows one with
// the same addresses and ports within a minute. With so many from one client, some do.
func assertMostly(t *testing.T, summary *load.Summary) {
	t.Helper()
	assert.Zero(t, summary.Failures.Count, "%+v", summary.Failures)
	assert.Zero(t, summary.Strayed.Count, "%+v", summary.Strayed)
	assert.Greater(t, summary.MatchedToLaptop, summary.MatchedTotal*3/4)
}
