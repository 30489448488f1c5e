// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/lab"
)

// upgrade is a cluster and a laptop that begin with the last release.
type upgrade struct {
	*scene
	tapped *listener
}

// TestUpgradeFromRelease upgrades the release in $SIDESTEP_RELEASED: first the cluster, then the laptop, and
// then exchanges the certificate authority. Meanwhile an intercept of each kind is in use.
func TestUpgradeFromRelease(t *testing.T) {
	released := os.Getenv("SIDESTEP_RELEASED")
	require.NotEmpty(t, released, "run this through make test-upgrade")
	ctx := t.Context()
	l, err := lab.Up(ctx, testWriter(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	require.True(t, l.Local(), "the release's images are given to the nodes of the local cluster only")
	require.NoError(t, l.LoadImages(ctx, released))
	admin, err := l.Administrator(ctx)
	require.NoError(t, err)
	ann, err := l.Developer(ctx, "ann")
	require.NoError(t, err)
	_, out, err := admin.With(released).Install(ctx)
	require.NoError(t, err, out)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, _ = ann.Sidestep(ctx, "quit", "-s")
		_, _ = admin.Sidestep(ctx, "uninstall", "--everything")
	})
	u := &upgrade{scene: &scene{Lab: l, admin: admin, ann: ann}}
	u.intercepts(t, ann.With(released))

	u.during(t, func() { sidestep(t, admin, "helm", "upgrade") })
	u.works(t, ann.With(released))
	u.during(t, func() {
		killDaemon(t, ann.With(released))
		sidestep(t, ann, "status") // starts the new daemon, which finds its predecessor's session
	})
	u.works(t, ann)
	// The release kept no key of its authority, so the upgrade begins a rotation.
	u.during(t, func() { u.awaitSwitch(t, "") })
	u.works(t, ann)
	u.during(t, func() {
		before := u.switched(t)
		_, err := l.Kubectl(ctx, "-n", "sidestep", "annotate", "--overwrite", "secret", "sidestep-manager-tls",
			"sidestep.dev/rotate="+strconv.FormatInt(time.Now().UnixNano(), 10))
		require.NoError(t, err)
		u.awaitSwitch(t, before)
	})
	u.works(t, ann)
	// Clients that reconnect trust the new authority.
	u.during(t, func() {
		_, err := l.Kubectl(ctx, "-n", "sidestep", "delete", "pod", "-l", "app.kubernetes.io/component=manager")
		require.NoError(t, err)
	})
	u.works(t, ann)
}

// intercepts makes an intercept of each kind.
func (u *upgrade) intercepts(t *testing.T, d *lab.Developer) {
	t.Helper()
	image, pull := u.AppsImage()
	require.NoError(t, u.Apply(t.Context(), strings.NewReplacer("IMAGE", image, "PULL", pull).Replace(helped)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = u.Kubectl(ctx, "-n", lab.Namespace, "delete", "deployment", "helped", "--ignore-not-found")
	})
	_, err := u.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "status", "deployment/helped", "--timeout=60s")
	require.NoError(t, err)
	sidestep(t, d, "connect", "-n", lab.Namespace)
	serve(t, u.ann, "serve", "127.0.0.1:9000")
	serve(t, u.ann, "lines", "127.0.0.1:9001")
	u.tapped = listen(t, u.ann, "127.0.0.1:9100")
	intercept(t, d, "orders", "--port", "9000", "--http-header", "x-user=ann")
	intercept(t, d, "echo", "--port", "9001")
	intercept(t, d, "helped", "--port", "9002", "--to-pod", "8081", "--http-header", "x-user=ann")
	wiretap(t, d, "tap", "--port", "9100", "--http-path-prefix", "/tapped")
}

// during does something while clients of all intercepts are busy. None of the bystanders may notice.
func (u *upgrade) during(t *testing.T, do func()) {
	t.Helper()
	stop := make(chan struct{})
	type outcome struct {
		summary *load.Summary
		err     error
	}
	running := make(chan outcome)
	round := func(node int, target string, args ...string) {
		var all outcome
		for all.err == nil {
			s, err := u.Load(t.Context(), node, append([]string{target, "--duration", "5s", "-c", "8", "--rate", "100"}, args...)...)
			if all.err = err; err == nil && all.summary == nil {
				all.summary = s
			} else if err == nil {
				all.summary.Requests += s.Requests
				all.summary.UnmatchedFailed += s.UnmatchedFailed
				all.summary.MatchedFailed += s.MatchedFailed
				all.summary.UnmatchedToLaptop += s.UnmatchedToLaptop
				all.summary.Failures.First = append(all.summary.Failures.First, s.Failures.First...)
			}
			select {
			case <-stop:
				running <- all
				return
			default:
			}
		}
		running <- all
	}
	go round(0, "http://orders", "--matched", "0.25", "-H", "x-user: ann")
	go round(1, "http://stock")
	do()
	close(stop)
	for range 2 {
		o := <-running
		require.NoError(t, o.err)
		assert.Zero(t, o.summary.UnmatchedFailed, "%+v", o.summary.Failures)
		assert.Zero(t, o.summary.UnmatchedToLaptop)
		t.Logf("%d requests, %d of the developer's failed: %+v", o.summary.Requests, o.summary.MatchedFailed,
			o.summary.Failures.First)
		assert.LessOrEqual(t, o.summary.MatchedFailed, 8, "no more than were on their way")
	}
}

// works waits until each intercept does what it is for.
func (u *upgrade) works(t *testing.T, d *lab.Developer) {
	t.Helper()
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		answer, err := u.Call(ctx, "http://orders/x", "x-user: ann")
		if err == nil && answer.Service != "laptop" {
			err = fmt.Errorf("orders: answered by %s", answer.Service)
		}
		return err
	}))
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		summary, err := u.Load(ctx, 1, "tcp://echo:7777", "-n", "20", "-c", "4", "--matched", "1")
		if err == nil && summary.MatchedToLaptop != 20 {
			err = fmt.Errorf("echo: %+v", summary)
		}
		return err
	}))
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		path := fmt.Sprintf("/tapped/%d", time.Now().UnixNano())
		if _, err := u.Call(ctx, "http://orders"+path); err != nil {
			return err
		}
		return lab.Eventually(ctx, 5*time.Second, func(context.Context) error {
			if u.tapped.heard(t)[path] == 0 {
				return fmt.Errorf("no copy of %s", path)
			}
			return nil
		})
	}))
	require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		text, err := lab.Output(u.ann.Command(ctx, "curl", "-sS", "--fail", "--max-time", "5",
			"http://localhost:8081/"))
		if err == nil && !strings.Contains(text, `"helper"`) {
			err = fmt.Errorf("port of the pod: %s", text)
		}
		return err
	}))
	var list []struct {
		Intercepts []struct{ Name, State string }
	}
	decode(t, sidestep(t, d, "list", "-n", lab.Namespace, "--output", "json"), &list)
	states := map[string]string{}
	for _, w := range list {
		for _, i := range w.Intercepts {
			states[i.Name] = i.State
		}
	}
	assert.Equal(t, map[string]string{"orders": "ACTIVE", "echo": "ACTIVE", "helped": "ACTIVE", "tap": "ACTIVE"}, states)
}

// switched is since when the manager uses its authority; "" for one that it has found.
func (u *upgrade) switched(t *testing.T) string {
	t.Helper()
	text, err := u.Kubectl(t.Context(), "-n", "sidestep", "get", "secret", "sidestep-manager-tls", "-o",
		`jsonpath={.metadata.annotations.sidestep\.dev/switched}`)
	require.NoError(t, err)
	return text
}

// awaitSwitch waits until the manager uses another authority, which it announces for five minutes
// before.
func (u *upgrade) awaitSwitch(t *testing.T, before string) {
	t.Helper()
	look := time.NewTicker(5 * time.Second) // each look is a process
	defer look.Stop()
	for end := time.Now().Add(10 * time.Minute); u.switched(t) == before; <-look.C {
		require.True(t, time.Now().Before(end), "the authority has not changed")
	}
}
