// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// daemonOf is the process of a developer's daemon.
func daemonOf(t *testing.T, d *lab.Developer) string {
	t.Helper()
	var status struct {
		UserDaemon struct {
			PID int `json:"pid"`
		} `json:"user_daemon"`
	}
	decode(t, sidestep(t, d, "status", "--output", "json"), &status)
	require.NotZero(t, status.UserDaemon.PID)
	return strconv.Itoa(status.UserDaemon.PID)
}

// killDaemon ends a developer's daemon without a chance to end its session.
func killDaemon(t *testing.T, d *lab.Developer) {
	t.Helper()
	_, err := lab.Output(d.Command(t.Context(), "kill", "-9", daemonOf(t, d)))
	require.NoError(t, err)
}

// testKillBoth tests an intercept whose command line and daemon, which would leave it, were both
// killed.
func testKillBoth(t *testing.T, s *scene) {
	pidFile := filepath.Join(s.ann.Home(), "command.pid")
	cmd := s.ann.Command(t.Context(), "sidestep", "intercept", "orders", "-n", lab.Namespace,
		"--workload", "orders", "--port", "9000", "--http-header", "x-user=ann",
		"--", "sh", "-c", "echo $PPID $$ > "+pidFile+"; exec sleep 300")
	require.NoError(t, cmd.Start())
	go func() { _ = cmd.Wait() }()
	var pids []string
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(context.Context) error {
		content, err := os.ReadFile(pidFile)
		if pids = strings.Fields(string(content)); err == nil && len(pids) < 2 {
			err = errors.New("the command has not begun")
		}
		return err
	}))
	assert.Contains(t, sidestep(t, s.ann, "status"), "orders: ann@")
	record := filepath.Join(s.ann.Home(), ".cache", "sidestep", "session.json")
	require.NoError(t, lab.Eventually(t.Context(), 10*time.Second, func(context.Context) error {
		content, err := os.ReadFile(record)
		if err == nil && !strings.Contains(string(content), `"holder": `+pids[0]) {
			err = fmt.Errorf("%s does not say that process %s holds it:\n%s", record, pids[0], content)
		}
		return err
	}))
	_, err := lab.Output(s.ann.Command(t.Context(),
		append([]string{"kill", "-9", daemonOf(t, s.ann)}, pids...)...))
	require.NoError(t, err)

	// The next command finds it.
	require.NoError(t, lab.Eventually(t.Context(), 20*time.Second, func(ctx context.Context) error {
		status, err := s.ann.Sidestep(ctx, "status")
		if want := "the command that held it has ended, and so had the daemon that would have ended it"; err == nil && !strings.Contains(status, want) {
			err = fmt.Errorf("no word of %q in:\n%s", want, status)
		}
		return err
	}))
	left, err := s.Kubectl(t.Context(), "get", "intercepts", "--all-namespaces", "-o", "name")
	require.NoError(t, err)
	assert.Empty(t, strings.TrimSpace(left))
}

// testCutOff tests a laptop whose network is cut for longer than the traffic manager keeps its
// intercepts.
func testCutOff(t *testing.T, s *scene) {
	needsLocal(t, s)
	sidestep(t, s.admin, "helm", "upgrade", "--reuse-values", "--set", "sessionGrace=2s")
	_, err := s.Kubectl(t.Context(), "-n", "sidestep", "rollout", "status",
		"deployment/sidestep-manager", "--timeout=60s")
	require.NoError(t, err)
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	require.NoError(t, s.answers(t, "laptop"))

	firewall := func(what string) {
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			_, err := lab.Output(s.OnNode(context.WithoutCancel(t.Context()), "laptop", "iptables",
				what, chain, "!", "-s", "127.0.0.0/8", "-j", "DROP"))
			require.NoError(t, err)
		}
	}
	firewall("-I")
	cut := true
	mend := func() {
		if cut {
			cut = false
			firewall("-D")
		}
	}
	t.Cleanup(mend)
	require.NoError(t, lab.Eventually(t.Context(), 40*time.Second, func(ctx context.Context) error {
		left, err := s.Kubectl(ctx, "get", "intercepts", "--all-namespaces", "-o", "name")
		if err == nil && strings.TrimSpace(left) != "" {
			err = errors.New("the intercept is still there: " + left)
		}
		return err
	}))
	require.NoError(t, s.answers(t, "orders"), "the pods answer")
	mend()
	mended := time.Now()
	require.NoError(t, lab.Eventually(t.Context(), 45*time.Second,
		func(context.Context) error { return s.answers(t, "laptop") }), "it is back")
	t.Logf("back %s after the cable was mended", time.Since(mended).Round(100*time.Millisecond))
	// all pods have to steer before it is said to be there
	require.NoError(t, lab.Eventually(t.Context(), 45*time.Second, func(ctx context.Context) error {
		status, err := s.ann.Sidestep(ctx, "status")
		if err == nil && (!strings.Contains(status, "orders: ann@") ||
			strings.Contains(status, "Ended intercepts")) {
			err = errors.New("the intercept is not there again:\n" + status)
		}
		return err
	}))
}

// answers is an error unless it is this one who answers a request of ann's.
func (s *scene) answers(t *testing.T, who string) error {
	answer, err := s.Call(t.Context(), "http://orders", "x-user: ann")
	if err == nil && answer.Service != who {
		err = fmt.Errorf("%s answers, not %s", answer.Service, who)
	}
	return err
}
