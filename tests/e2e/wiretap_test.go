// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// listener is a process on a laptop that notes the paths of the requests that it gets.
type listener struct {
	log  string
	stop func()
}

func listen(t *testing.T, d *lab.Developer, address string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{log: filepath.Join(t.TempDir(), d.Name+".log")}
	output, err := os.Create(l.log)
	require.NoError(t, err)
	program, err := filepath.Abs("../../bin/apps")
	require.NoError(t, err)
	cmd := d.Command(ctx, program, "serve", "--log", "--name", "tapped", "--listen", address)
	cmd.Stdout, cmd.Stderr = output, output
	require.NoError(t, cmd.Start())
	l.stop = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait()
		_ = output.Close()
	})
	t.Cleanup(l.stop)
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(l.log)
		return err == nil && strings.Contains(string(text), "listens on")
	}, 10*time.Second, 10*time.Millisecond)
	return l
}

var loggedPath = regexp.MustCompile(`path=(/\S+)`)

// heard says how often there was a request for each path.
func (l *listener) heard(t *testing.T) map[string]int {
	t.Helper()
	text, err := os.ReadFile(l.log)
	require.NoError(t, err)
	paths := map[string]int{}
	for _, found := range loggedPath.FindAllStringSubmatch(string(text), -1) {
		paths[found[1]]++
	}
	return paths
}

// wiretap makes a wiretap of Deployment orders for the length of the test.
func wiretap(t *testing.T, d *lab.Developer, name string, args ...string) string {
	t.Helper()
	out := sidestep(t, d, append([]string{"wiretap", name, "--workload", "orders", "-n", lab.Namespace},
		args...)...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_, _ = d.Sidestep(ctx, "leave", name)
	})
	return out
}

// asked are the requests of a round: to paths that are tapped and others, of ann, whose requests
// are intercepted, and of bob.
func asked(round string, n int) (requests []lab.Request, tapped, bobs map[string]int) {
	tapped, bobs = map[string]int{}, map[string]int{}
	for i := range n {
		path := fmt.Sprintf("/%s/%s/%d", []string{"tapped", "other", "tapped"}[i%3], round, i)
		user := []string{"ann", "bob"}[i%2]
		if user == "bob" {
			bobs[path] = 1
			if i%3 != 1 {
				tapped[path] = 1
			}
		}
		requests = append(requests,
			lab.Request{URL: "http://orders" + path, Headers: []string{"X-User: " + user}})
	}
	return requests, tapped, bobs
}

// ask sends the requests, and checks that each is answered by the expected service.
func (s *scene) ask(t *testing.T, requests []lab.Request) {
	t.Helper()
	expect := func(r lab.Request) string {
		if strings.HasSuffix(r.Headers[0], "ann") {
			return "laptop"
		}
		return "orders"
	}
	if !s.Local() {
		for _, r := range requests {
			answer, err := s.Call(t.Context(), r.URL, r.Headers...)
			require.NoError(t, err)
			assert.Equal(t, expect(r), answer.Service, r.URL)
		}
		return
	}
	service, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "service", "orders", "-o",
		"jsonpath={.spec.clusterIP}")
	require.NoError(t, err)
	byIP := make([]lab.Request, len(requests))
	for i, r := range requests {
		byIP[i] = lab.Request{URL: strings.Replace(r.URL, "//orders", "//"+service, 1), Headers: r.Headers}
	}
	for _, node := range []string{"node1", "node2"} {
		half := byIP[:len(byIP)/2]
		if node == "node2" {
			half = byIP[len(byIP)/2:]
		}
		answers, err := s.Curl(t.Context(), node, 8, half)
		require.NoError(t, err)
		for i, answer := range answers {
			assert.Equal(t, expect(half[i]), answer.Service, half[i].URL)
		}
	}
}

func testWiretap(t *testing.T, s *scene) {
	const n = 120
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	anns, bobs := listen(t, s.ann, "127.0.0.1:9100"), listen(t, s.bob, "127.0.0.1:9101")
	out := wiretap(t, s.ann, "listen", "--port", "9100", "--http-path-prefix", "/tapped")
	assert.Contains(t, out, "wiretapped\n    Wiretap name : listen\n    State        : ACTIVE\n")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	wiretap(t, s.bob, "hear", "--port", "9101", "--http-header", "all")

	requests, tapped, theirs := asked("both", n)
	s.ask(t, requests)
	assert.Eventually(t, func() bool {
		return len(anns.heard(t)) >= len(tapped) &&
			len(bobs.heard(t)) >= len(theirs)
	}, 10*time.Second, 10*time.Millisecond)
	assert.Equal(t, tapped, anns.heard(t), "what was intercepted, or is below another path, is not copied")
	assert.Equal(t, theirs, bobs.heard(t), "the kubelet's probes are not copied")
	assert.EventuallyWithT(t, func(c *assert.CollectT) {
		out, err := s.ann.Sidestep(t.Context(), "status", "--wide")
		require.NoError(c, err)
		assert.Contains(c, out, fmt.Sprintf("copies: %d requests\n", len(tapped)))
	}, 20*time.Second, 500*time.Millisecond)
	assert.Contains(t, sidestep(t, s.bob, "list", "-n", lab.Namespace), "wiretapped, also by ann@")

	sidestep(t, s.ann, "leave", "listen")
	bobs.stop() // and dead processes do not matter
	requests, _, _ = asked("gone", n)
	s.ask(t, requests)
	assert.Equal(t, tapped, anns.heard(t), "nothing is copied after leave")
}
