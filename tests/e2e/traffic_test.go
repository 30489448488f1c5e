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

func testThousandMixed(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	if !s.Local() {
		summary, err := s.Load(t.Context(), 0, "http://orders", "-n", "1000", "-c", "32", "--matched",
			"0.5", "-H", "x-user: ann")
		require.NoError(t, err)
		assertSplit(t, summary)
		return
	}
	pods, err := s.Pods(t.Context(), lab.Namespace, "app=orders")
	require.NoError(t, err)
	require.Len(t, pods, 2)
	require.NotEqual(t, pods[0].Node, pods[1].Node, "the replicas share a node")
	service, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "service", "orders", "-o",
		"jsonpath={.spec.clusterIP}")
	require.NoError(t, err)
	urls := []string{"http://" + service, "http://" + pods[0].IP + ":8080", "http://" + pods[1].IP + ":8080"}
	for _, node := range []string{"node1", "node2"} {
		var requests []lab.Request
		for i := range 500 {
			r := lab.Request{URL: urls[i%3] + fmt.Sprintf("/%d", i)}
			switch i % 4 {
			case 0:
				r.Headers = []string{"X-User: ann"}
			case 1:
				r.Headers = []string{"X-User: bob"}
			case 2:
				r.Headers = []string{"x-user: Ann"}
			}
			requests = append(requests, r)
		}
		answers, err := s.Curl(t.Context(), node, 32, requests)
		require.NoError(t, err)
		laptop, pods := 0, map[string]int{}
		for i, answer := range answers {
			assert.Equal(t, fmt.Sprintf("/%d", i), answer.Path, "an answer to another request")
			if answer.Service == "laptop" {
				laptop++
				assert.Zero(t, i%4, "an unmatched request reached the laptop: %v", requests[i])
			} else {
				pods[answer.Pod]++
				assert.NotZero(t, i%4, "a matched request reached the app: %v", requests[i])
			}
		}
		assert.Equal(t, 125, laptop)
		assert.Len(t, pods, 2, "both replicas answer")
	}
}

// assertSplit: every matched request reached the laptop, no other did, and none failed.
func assertSplit(t *testing.T, summary *load.Summary) {
	t.Helper()
	assert.Zero(t, summary.Failures.Count, "%+v", summary.Failures)
	assert.Zero(t, summary.Missed.Count, "%+v", summary.Missed)
	assert.Zero(t, summary.Strayed.Count, "%+v", summary.Strayed)
	assert.NotZero(t, summary.UnmatchedTotal)
}

func testChain(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	out := intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "auto")
	header := autoHeader(t, out)
	answer, err := s.Call(t.Context(), "http://frontend/basket", header)
	require.NoError(t, err)
	assert.Equal(t, []string{"frontend", "laptop"}, answer.Chain()[:2])
	answer, err = s.Call(t.Context(), "http://frontend/basket")
	require.NoError(t, err)
	assert.Equal(t, []string{"frontend", "orders", "stock"}, answer.Chain())
}

// autoHeader finds the header that intercept says to use, "name: value".
func autoHeader(t *testing.T, out string) string {
	t.Helper()
	_, rest, found := strings.Cut(out, "x-telepresence-intercept-id: ")
	require.True(t, found, "the output names no header to use:\n%s", out)
	value, _, _ := strings.Cut(rest, "'")
	return "x-telepresence-intercept-id: " + value
}

func testPath(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann", "--http-path-prefix", "/api")
	for _, c := range []struct{ path, header, service string }{
		{"/api/version?x=/", "x-user: ann", "laptop"},
		{"/other/api", "x-user: ann", "orders"},
		{"/?/api", "x-user: ann", "orders"},
		{"/api", "x-user: bob", "orders"},
	} {
		answer, err := s.Call(t.Context(), "http://orders"+c.path, c.header)
		require.NoError(t, err)
		assert.Equal(t, c.service, answer.Service, "%s with %s", c.path, c.header)
	}
}

func testTCP(t *testing.T, s *scene) {
	serve(t, s.ann, "lines", "127.0.0.1:9001")
	out := intercept(t, s.ann, "echo", "--port", "9001")
	assert.Contains(t, out, "Intercepting  : all TCP connections")
	for node := range 2 {
		summary, err := s.Load(t.Context(), node, "tcp://echo:7777", "-n", "200", "-c", "16", "--matched", "1")
		require.NoError(t, err)
		assert.Equal(t, 200, summary.MatchedToLaptop, "%+v", summary)
	}
	sidestep(t, s.ann, "leave", "echo")
	summary, err := s.Load(t.Context(), 0, "tcp://echo:7777", "-n", "200", "-c", "16")
	require.NoError(t, err)
	assert.Zero(t, summary.UnmatchedToLaptop+summary.Failures.Count, "%+v", summary)
}

func testTwoDevelopers(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	serve(t, s.bob, "serve", "127.0.0.1:9100")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	intercept(t, s.bob, "orders", "--port", "9100", "--http-header", "x-user=bob")
	for _, name := range []string{"ann", "bob"} {
		answer, err := s.Call(t.Context(), "http://orders", "x-user: "+name)
		require.NoError(t, err)
		assert.Equal(t, "laptop/"+name, answer.Service+"/"+answer.Pod)
	}
	answer, err := s.Call(t.Context(), "http://orders", "x-user: eve")
	require.NoError(t, err)
	assert.Equal(t, "orders", answer.Service)

	_, err = s.bob.Sidestep(t.Context(), "intercept", "second", "--workload", "orders", "-n",
		lab.Namespace, "--port", "9101", "--http-header", "x-user=ann")
	require.ErrorContains(t, err, "ann@", "an overlap is refused with the holder's name")
	_, err = s.bob.Sidestep(t.Context(), "intercept", "second", "--workload", "orders", "-n",
		lab.Namespace, "--port", "9101", "--mechanism", "tcp")
	require.Error(t, err)
	objects, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "intercepts", "--no-headers")
	require.NoError(t, err)
	assert.Len(t, strings.Split(strings.TrimSpace(objects), "\n"), 2,
		"a refused intercept left an object:\n%s", objects)
}

func testOtherWorkloads(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "stock", "--port", "9000", "--http-header", "x-user=ann")
	out := intercept(t, s.ann, "legacy", "--port", "9002", "--http-header", "x-user=ann")
	assert.Contains(t, out, "Using ReplicaSet legacy")
	out = intercept(t, s.ann, "twoports", "--port", "9003:admin", "--http-header", "x-user=ann")
	assert.Contains(t, out, "Service Port Identifier: admin")
	serve(t, s.ann, "serve", "127.0.0.1:9002")
	serve(t, s.ann, "serve", "127.0.0.1:9003")
	for url, want := range map[string]string{"http://stock": "laptop", "http://legacy": "laptop",
		"http://twoports:81": "laptop", "http://twoports:80": "twoports"} {
		answer, err := s.Call(t.Context(), url, "x-user: ann")
		require.NoError(t, err)
		assert.Equal(t, want, answer.Service, url)
	}
	// The same command with another port moves the intercept.
	intercept(t, s.ann, "twoports", "--port", "9003:http", "--http-header", "x-user=ann")
	for url, want := range map[string]string{"http://twoports:81": "twoports-admin",
		"http://twoports:80": "laptop"} {
		answer, err := s.Call(t.Context(), url, "x-user: ann")
		require.NoError(t, err)
		assert.Equal(t, want, answer.Service, "after the move: %s", url)
	}
}

func testOtherProtocols(t *testing.T, s *scene) {
	intercept(t, s.ann, "greeter", "--port", "9000", "--http-header", "x-user=ann")
	intercept(t, s.ann, "echo", "--port", "9001", "--http-header", "x-user=ann")
	for _, target := range []string{"grpc://greeter:9000", "tcp://echo:7777"} {
		summary, err := s.Load(t.Context(), 0, target, "-n", "500", "-c", "16")
		require.NoError(t, err)
		assert.Equal(t, 500, summary.UnmatchedTotal, target)
		assert.Zero(t, summary.Failures.Count+summary.UnmatchedToLaptop, "%s: %+v", target, summary)
	}
}

func testNothingListens(t *testing.T, s *scene) {
	intercept(t, s.ann, "orders", "--port", "9555", "--http-header", "x-user=ann")
	summary, err := s.Load(t.Context(), 0, "http://orders", "-n", "200", "-c", "8", "--matched", "0.5",
		"-H", "x-user: ann")
	require.NoError(t, err)
	assert.Zero(t, summary.Failures.Count, "%+v", summary.Failures)
	assert.Zero(t, summary.MatchedToLaptop)
}

func testComeAndGo(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type outcome struct {
		summary *load.Summary
		err     error
	}
	running := make(chan outcome, 4)
	for node := range 2 {
		for _, mode := range [][]string{nil, {"--keep-alive", "-X", "POST"}} {
			go func() {
				args := append([]string{"http://orders", "--duration", "20s", "-c", "8", "--rate",
					"300"}, mode...)
				summary, err := s.Load(t.Context(), node, args...)
				running <- outcome{summary, err}
				cancel()
			}()
		}
	}
	rounds := 0
	for ctx.Err() == nil {
		sidestep(t, s.ann, "intercept", "orders", "-n", lab.Namespace, "--workload", "orders", "--port",
			"9000", "--http-header", "x-user=ann")
		sidestep(t, s.ann, "leave", "orders")
		rounds++
	}
	total := 0
	for range 4 {
		o := <-running
		require.NoError(t, o.err)
		assert.Zero(t, o.summary.Failures.Count, "%+v", o.summary.Failures)
		assert.Zero(t, o.summary.Strayed.Count, "%+v", o.summary.Strayed)
		total += o.summary.Requests
	}
	t.Logf("%d requests during %d rounds of intercept and leave", total, rounds)
	assert.Greater(t, rounds, 5)
}

func testPodChurn(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "twoports", "--port", "9000:http", "--http-header", "x-user=ann")
	_, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "restart", "deployment/twoports")
	require.NoError(t, err)
	_, err = s.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "status", "deployment/twoports",
		"--timeout=60s")
	require.NoError(t, err)
	require.NoError(t, lab.Eventually(t.Context(), 5*time.Second, func(ctx context.Context) error {
		state, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "-o",
			"jsonpath={.items[*].status.state}")
		if err == nil && state != "ACTIVE" {
			err = fmt.Errorf("state %s", state)
		}
		return err
	}))
	for range 20 {
		answer, err := s.Call(t.Context(), "http://twoports", "x-user: ann")
		require.NoError(t, err)
		assert.Equal(t, "laptop", answer.Service)
	}
}
