// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/takeover"
)

func TestMatchingRequestEndsItsConnectionAndNoOther(t *testing.T) {
	for name, clsact := range map[string]bool{"as the kernel has it": false, "by clsact": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
				developer, bystander := dial(t, w.node.Namespace, ip), dial(t, w.node.Namespace, ip)
				for _, c := range []*client{developer, bystander} {
					who, err := c.ask(plain)
					require.NoError(t, err)
					require.Equal(t, "app", who)
				}
				if ip == w.pod.IP4 {
					continue
				}
				w.watch(t, func(c *takeover.Config) { takeover.Clsact(c, clsact) }, rule(t, takeover.Auto))
				assert.Equal(t, 4, w.port.Watched())
				w.steer(t)
				for range 3 {
					who, err := bystander.ask(plain)
					require.NoError(t, err)
					assert.Equal(t, "app", who)
					who, err = developer.ask(plain)
					require.NoError(t, err, "as long as it does not match")
					assert.Equal(t, "app", who)
				}
				start := time.Now()
				_, err := developer.ask(marked)
				t.Log("ended after", time.Since(start))
				assert.ErrorIs(t, err, unix.ECONNRESET)
				again := dial(t, w.node.Namespace, ip)
				who, err := again.ask(marked)
				require.NoError(t, err)
				assert.Equal(t, "laptop", who)
				assert.Zero(t, w.app.marked.Load(), "the app has seen nothing of it")
				who, err = bystander.ask(plain)
				require.NoError(t, err)
				assert.Equal(t, "app", who)
			}
		})
	}
}

// The client would try again, and its new connection would come to the app as well.
func TestNothingIsTakenOverBeforeNewConnectionsAreSteered(t *testing.T) {
	w := newWorld(t)
	c := dial(t, w.node.Namespace, w.pod.IP4)
	w.watch(t, nil, rule(t, takeover.Auto))
	require.Equal(t, 1, w.port.Watched())
	who, err := c.ask(marked)
	require.NoError(t, err)
	assert.Equal(t, "app", who)
	w.steer(t)
	_, err = c.ask(marked)
	assert.ErrorIs(t, err, unix.ECONNRESET)
}

// A node agent that is short of something has the kernel pass all connections to the app until that
// is over.
func TestNothingIsTakenOverWhileTheAgentCannotServe(t *testing.T) {
	for name, r := range map[string]takeover.Rule{
		"a matching request":     rule(t, takeover.Auto),
		"an idle connection":     {Intercept: "ann", TCP: true, Existing: takeover.Idle},
		"connections altogether": {Intercept: "ann", TCP: true, Existing: takeover.All},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := dial(t, w.node.Namespace, w.pod.IP4)
			var serving atomic.Bool
			w.watch(t, func(c *takeover.Config) { c.Steering = serving.Load }, r)
			w.steer(t)
			time.Sleep(idleInTests() + 300*time.Millisecond) // more than one look
			who, err := c.ask(marked)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
			serving.Store(true)
			if !r.TCP {
				_, err = c.ask(marked)
				assert.ErrorIs(t, err, unix.ECONNRESET, "as soon as it can")
				return
			}
			assert.Eventually(t, func() bool { return w.counters.Ended.Load() == 1 }, 20*time.Second,
				10*time.Millisecond, "as soon as it can")
		})
	}
}

func TestFalseAlarmIsLetGoAtOnce(t *testing.T) {
	w := newWorld(t)
	c4, c6 := dial(t, w.node.Namespace, w.pod.IP4), dial(t, w.node.Namespace, w.pod.IP6)
	// What is looked for is the literal beginning of the expression.
	r := rule(t, takeover.Auto)
	r.HTTP = regexRule(t, "x-user", "ann-[0-9]+")
	w.watch(t, nil, r)
	w.steer(t)
	var all []time.Duration
	for _, c := range []*client{c4, c6} {
		for range 5 {
			start := time.Now()
			who, err := c.ask("GET / HTTP/1.1\r\nHost: a\r\nx-user: ann-x\r\n\r\n")
			took := time.Since(start)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
			all = append(all, took)
		}
	}
	slices.Sort(all)
	t.Log("answered after", all)
	assert.Less(t, all[len(all)/2], 150*time.Millisecond, "before TCP has repeated it")
	assert.EqualValues(t, 10, w.counters.Released.Load())
}

func TestExisting(t *testing.T) {
	tcp := func(existing string) takeover.Rule {
		return takeover.Rule{Intercept: "ann", TCP: true, Existing: existing}
	}
	for _, c := range []struct {
		name       string
		rule       takeover.Rule
		idle, busy bool // whether it lives on
	}{
		{"idle connections end for a tcp intercept", tcp(takeover.Auto), false, true},
		{"all connections end when that is wanted", tcp(takeover.All), false, false},
		{"no connection ends when that is wanted", tcp(takeover.None), true, true},
		{"idle connections end for an http intercept when that is wanted", rule(t, takeover.Idle), false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
				if w.port != nil {
					require.NoError(t, w.port.Close())
				}
				idle, busy := dial(t, w.node.Namespace, ip), dial(t, w.node.Namespace, ip)
				_, err := idle.ask(plain)
				require.NoError(t, err)
				time.Sleep(idleInTests() + 100*time.Millisecond) // that is what makes it idle
				stop := make(chan struct{})
				result := make(chan error)
				go func() {
					var err error
					for err == nil {
						select {
						case <-stop:
							result <- nil
							return
						case <-time.After(10 * time.Millisecond):
							_, err = busy.ask(plain)
						}
					}
					<-stop
					result <- err
				}()
				require.NoError(t, busy.SetDeadline(time.Now().Add(30*time.Second)))
				time.Sleep(50 * time.Millisecond) // of being busy
				w.watch(t, nil, c.rule)
				require.NoError(t, w.port.Steered())
				time.Sleep(300 * time.Millisecond)
				_, err = idle.ask(plain)
				assert.Equal(t, c.idle, err == nil, "idle: %v", err)
				close(stop)
				err = <-result
				assert.Equal(t, c.busy, err == nil, "busy: %v", err)
			}
		})
	}
}
