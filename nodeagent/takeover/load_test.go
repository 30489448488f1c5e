// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// each calls fn for all clients, a few at a time, and gives how long each call took, the shortest
// first.
func each(t *testing.T, all []*client, fn func(i int, c *client) error) []time.Duration {
	t.Helper()
	took := make([]time.Duration, len(all))
	var next atomic.Int64
	var running sync.WaitGroup
	for range 32 {
		running.Go(func() {
			for i := int(next.Add(1) - 1); i < len(all); i = int(next.Add(1) - 1) {
				start := time.Now()
				if !assert.NoError(t, fn(i, all[i]), "client %d", i) {
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	running.Wait()
	slices.Sort(took)
	return took
}

func byApp(request string) func(int, *client) error {
	return func(_ int, c *client) error {
		if who, err := c.ask(request); err != nil || who != "app" {
			return fmt.Errorf("%s, %w", who, err)
		}
		return nil
	}
}

func TestTenThousandOpenConnections(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 500
	}
	w := newWorldWithoutApp(t)
	w.startChild(t, "app").expect(t, "listening")
	all := make([]*client, n)
	each(t, all, func(i int, _ *client) error {
		all[i] = dial(t, w.node.Namespace, []netip.Addr{w.pod.IP4, w.pod.IP6}[i%2])
		return byApp(plain)(i, all[i])
	})
	require.False(t, t.Failed())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	w.watch(t, nil, rule(t, takeover.Auto))
	took := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Equal(t, n, w.port.Watched())
	t.Logf("%d connections are watched after %v, with %d KiB more in use", n, took,
		(int64(after.HeapInuse)-int64(before.HeapInuse))>>10)
	w.steer(t)
	waits := each(t, all, byApp(plain))
	t.Logf("requests of all, 32 at a time: p50 %v, p99 %v, longest %v", waits[n/2], waits[n*99/100], waits[n-1])
	developers := []*client{all[0], all[1], all[n/2], all[n-1]}
	for _, c := range developers {
		_, err := c.ask(marked)
		assert.ErrorIs(t, err, unix.ECONNRESET)
	}
	others := slices.DeleteFunc(slices.Clone(all),
		func(c *client) bool { return slices.Contains(developers, c) })
	each(t, others, byApp(plain))
	w.tookOver(t, len(developers))
	assert.EqualValues(t, 0, w.counters.TimedOut.Load()+w.counters.NoRoom.Load())
}

// named is a rule with a header of its own.
func named(t *testing.T, intercept, header, value string) takeover.Rule {
	return takeover.Rule{Intercept: intercept, HTTP: regexRule(t, header, value), Existing: takeover.Auto}
}

func TestManyInterceptsOfOnePort(t *testing.T) {
	w := newWorld(t)
	var rules []takeover.Rule
	for i := range 24 {
		rules = append(rules, named(t, fmt.Sprint("intercept-", i), "x-sidestep-session",
			fmt.Sprintf("user-%d", i)))
	}
	developers, others := w.clients(t, w.pod.IP4, len(rules)), w.clients(t, w.pod.IP6, len(rules))
	w.watch(t, nil, rules...)
	w.steer(t)
	for i := range rules {
		_, err := developers[i].ask(get(fmt.Sprintf("X-Sidestep-Session: user-%d", i)))
		assert.ErrorIs(t, err, unix.ECONNRESET, "developer %d", i)
		for _, request := range []string{plain, get(fmt.Sprintf("x-sidestep-session: user-%d-x", i))} {
			who, err := others[i].ask(request)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
		}
	}
	w.tookOver(t, len(rules))
}

func TestRulesThatAreTooManyLeaveConnectionsWithTheApp(t *testing.T) {
	w := newWorld(t)
	var rules []takeover.Rule
	for i := range 150 {
		rules = append(rules, named(t, fmt.Sprint("intercept-", i), fmt.Sprintf("x%d-header", i), "ann"))
	}
	all := w.clients(t, w.pod.IP4, 3)
	w.watch(t, nil)
	w.steer(t)
	err := w.port.SetRules(rules)
	require.Error(t, err)
	assert.Contains(t, err.Error(), "the intercepts of this port look for too many different headers and paths")
	for _, c := range all {
		who, err := c.ask(get("x7-header: ann"))
		require.NoError(t, err)
		assert.Equal(t, "app", who)
	}
	assert.Zero(t, w.port.Watched())
	// Those that end connections do so all the same.
	assert.Error(t, w.port.SetRules(append(rules,
		takeover.Rule{Intercept: "all", TCP: true, Existing: takeover.All})))
	require.NoError(t, w.port.Steered())
	for _, c := range all {
		_, err := c.ask(plain)
		assert.ErrorIs(t, err, unix.ECONNRESET)
	}
	// And so do fewer.
	require.NoError(t, w.port.SetRules(rules[:5]))
	assert.Zero(t, w.port.Watched(), "of connections that have ended")
}

func TestKernelThatEndsNoConnections(t *testing.T) {
	w := newWorld(t)
	all := w.clients(t, w.pod.IP4, 2)
	w.watch(t, func(c *takeover.Config) {
		takeover.Destroy(c, func(*sockdiag.Socket) error { return sockdiag.ErrCannotDestroy })
	}, rule(t, takeover.Auto))
	w.steer(t)
	for range 3 {
		for _, c := range all {
			start := time.Now()
			who, err := c.ask(marked)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
			t.Log("answered after", time.Since(start))
		}
	}
	assert.EqualValues(t, 6, w.app.marked.Load())
	assert.EqualValues(t, 6, w.counters.LeftUndestroyed.Load())
	assert.EqualValues(t, 6, w.counters.Released.Load(), "none has waited for TCP to repeat it")
	// Where that is known beforehand nothing is watched.
	_, err := takeover.Open(takeover.Config{Namespace: refusing{w.pod.Namespace}, Port: port,
		Claims: func(match.Head) string { return "" }})
	require.True(t, errors.Is(err, sockdiag.ErrCannotDestroy), "%v", err)
	assert.Contains(t, err.Error(), "CONFIG_INET_DIAG_DESTROY")
}

// refusing is a namespace of a kernel that cannot end connections.
type refusing struct{ takeover.Namespace }

func (refusing) Do(func() error) error { return sockdiag.ErrCannotDestroy }

// BenchmarkRequest is how long one client waits for its answers, on one connection.
func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct {
		name, request string
		watched       bool
	}{
		{"nobody watches", plain, false},
		{"watched", plain, true},
		{"held back and let go", get("x-user: ann-x"), true},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			one := dial(b, w.node.Namespace, w.pod.IP4)
			if c.watched {
				w.watch(b, func(c *takeover.Config) { c.Log = slog.New(slog.DiscardHandler) }, falseAlarm(b))
				w.steer(b)
			}
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				who, err := one.ask(c.request)
				took = append(took, time.Since(start))
				require.NoError(b, err)
				require.Equal(b, "app", who)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/1000, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100])/1000, "p99-µs")
			b.ReportMetric(float64(w.counters.Released.Load()), "held")
		})
	}
}
