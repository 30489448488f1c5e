// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// calls sends requests that match, and says which service answers each.
func calls(t *testing.T, s *scene, service, url string, n int) {
	t.Helper()
	for range n {
		answer, err := s.Call(t.Context(), url, "x-user: ann")
		require.NoError(t, err)
		assert.Equal(t, service, answer.Service)
	}
}

// says waits until a command's output has all these texts.
func says(t *testing.T, d *lab.Developer, texts []string, args ...string) {
	t.Helper()
	out := ""
	err := lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) (err error) {
		if out, err = d.Sidestep(ctx, args...); err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return errors.New("it does not say " + text)
			}
		}
		return nil
	})
	assert.NoError(t, err, "%s", out)
}

// testUnanswered has requests that match and that nobody on the laptop answers, and then somebody.
func testUnanswered(t *testing.T, s *scene) {
	terminal := filepath.Join(s.ann.Home(), "terminal")
	stderr, err := os.Create(terminal)
	require.NoError(t, err)
	defer stderr.Close()
	cmd := s.ann.Command(t.Context(), "sidestep", "intercept", "orders", "-n", lab.Namespace, "--workload", "orders",
		"--port", "9560", "--http-header", "x-user=ann", "--", "sleep", "120")
	cmd.Stderr = stderr
	require.NoError(t, cmd.Start())
	defer func() {
		sidestep(t, s.ann, "leave", "orders")
		_ = cmd.Wait()
	}()
	says(t, s.ann, []string{"ACTIVE"}, "list", "-n", lab.Namespace, "--intercepts")

	const refused = "nothing listens on the local port"
	const advice = "start the local process, or give the port that it listens on with --port"
	calls(t, s, "orders", "http://orders", 2)
	says(t, s.ann, []string{"not answered here: 2 requests", refused, advice}, "status")
	says(t, s.ann, []string{"pod orders-", "not answered here: 2 requests", refused, advice}, "status", "--wide")
	says(t, s.ann, []string{"Not answered here", refused}, "list", "-n", lab.Namespace, "--intercepts")
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(context.Context) error {
		text, err := os.ReadFile(terminal)
		if err == nil && !strings.Contains(string(text), "was not answered here: "+refused+" — "+advice) {
			err = errors.New("the terminal does not show it: " + string(text))
		}
		return err
	}))
	condition, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "intercepts", "-o",
		`jsonpath={.items[0].status.conditions[?(@.type=="Answered")].status} `+
			`{.items[0].status.conditions[?(@.type=="Answered")].reason}`)
	require.NoError(t, err)
	assert.Equal(t, "False LocalRefused", condition)

	serve(t, s.ann, "serve", "127.0.0.1:9560")
	calls(t, s, "laptop", "http://orders", 3)
	says(t, s.ann, []string{" answered here: 3 requests", "not answered here: 2 requests"}, "status")
	text, err := os.ReadFile(terminal)
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(string(text), refused), "it is shown once")
}

// testPorts names ports in every way, and has two intercepts share a local one.
func testPorts(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9570")
	out := intercept(t, s.ann, "twoports", "--port", "9570:9090", "--http-header", "x-user=ann")
	assert.Regexp(t, `Service Port Identifier *: admin`, out, "the service port that leads to the container's")
	all, err := s.ann.Command(t.Context(), "sidestep", "intercept", "orders", "--workload", "orders", "-n", lab.Namespace,
		"--port", "9570", "--http-header", "x-user=ann").CombinedOutput()
	require.NoError(t, err, "%s", all)
	defer sidestep(t, s.ann, "leave", "orders")
	assert.Contains(t, string(all), "intercept twoports delivers to 127.0.0.1:9570, too")
	calls(t, s, "laptop", "http://twoports:81", 1)
	calls(t, s, "laptop", "http://orders", 1)
	for _, c := range []struct{ port, want string }{
		{"9571:nosuch", "no port nosuch"},
		{"9571:admin", `is intercepted by your own intercept "twoports"`},
	} {
		_, err := s.ann.Sidestep(t.Context(), "intercept", "again", "-n", lab.Namespace, "--workload", "twoports", "--port",
			c.port, "--http-header", "x-user=ann")
		assert.ErrorContains(t, err, c.want)
	}
}
