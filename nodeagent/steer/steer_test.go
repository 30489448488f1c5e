// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

func TestSteering(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
			require.Equal(t, "app", w.ask(t, ip), "before anything is attached")
		}
		a := w.start(t, "agent")
		loop4, loop6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
		for _, tc := range []struct {
			name string
			from *netns.Namespace
			to   netip.Addr
			want string
		}{
			{"a client outside reaches the agent over IPv4", w.node.Namespace, w.pod.IP4, "agent"},
			{"a client outside reaches the agent over IPv6", w.node.Namespace, w.pod.IP6, "agent"},
			{"the pod reaches its app at its own IPv4 address", w.pod.Namespace, w.pod.IP4, "app"},
			{"the pod reaches its app at its own IPv6 address", w.pod.Namespace, w.pod.IP6, "app"},
			{"the pod reaches its app at 127.0.0.1", w.pod.Namespace, loop4, "app"},
			{"the pod reaches its app at ::1", w.pod.Namespace, loop6, "app"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				assert.Equal(t, tc.want, ask(t, tc.from, tc.to))
			})
		}
		require.NoError(t, a.program.Remove(netip.AddrPortFrom(w.pod.IP4, port)))
		assert.Equal(t, "app", w.ask(t, w.pod.IP4), "target removed")
		assert.Equal(t, "agent", w.ask(t, w.pod.IP6), "target not removed")
		outcomes, err := a.program.Outcomes()
		require.NoError(t, err)
		assert.GreaterOrEqual(t, outcomes[bpf.Steered], uint64(3))
		require.NoError(t, a.program.Detach())
		assert.Equal(t, "app", w.ask(t, w.pod.IP6), "detached")
		w.nothingLeft(t)
	})
}

func TestMeshProxyInThePodIsSteered(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		w.start(t, "agent")
		ns := podnet.Namespace{Namespace: w.pod.Namespace}
		// Envoy dials from 127.0.0.6.
		c, err := ns.Dial(t.Context(), netip.MustParseAddr("127.0.0.6"),
			netip.AddrPortFrom(w.pod.IP4, port), nil)
		require.NoError(t, err)
		defer c.Close()
		word, err := bufio.NewReader(c).ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, "agent\n", word)
	})
}

func TestSteeringWorksWithSYNCookies(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		require.NoError(t, w.pod.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0) // for every connection
		}))
		w.start(t, "agent")
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4))
		assert.Equal(t, "agent", w.ask(t, w.pod.IP6))
	})
}

func TestClosedListenerLeavesConnectionsToTheApp(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		a := w.start(t, "agent")
		require.NoError(t, a.listeners[0].Close())
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		assert.Equal(t, "agent", w.ask(t, w.pod.IP6), "the other listener is open")
	})
}

func TestSilentAgentLeavesConnectionsToTheApp(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		a := w.start(t, "agent")
		require.Equal(t, "agent", w.ask(t, w.pod.IP4))
		a.fallSilent()
		assert.Eventually(t, func() bool { return w.ask(t, w.pod.IP4) == "app" }, 30*time.Second,
			50*time.Millisecond)
		assert.Equal(t, "app", w.ask(t, w.pod.IP6))
		require.NoError(t, a.node.Beat())
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4), "it is back")
	})
}

func TestHushedAgentLeavesConnectionsToTheAppAtOnce(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		a := w.start(t, "agent")
		require.Equal(t, "agent", w.ask(t, w.pod.IP4))
		a.fallSilent()
		require.NoError(t, a.node.Hush())
		assert.False(t, a.node.Beating())
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		assert.Equal(t, "app", w.ask(t, w.pod.IP6))
		require.NoError(t, a.node.Beat())
		assert.True(t, a.node.Beating())
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4), "it is back")
	})
}

func TestKilledAgentIsReplacedByTheNext(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		first := w.start(t, "first")
		require.Equal(t, "first", w.ask(t, w.pod.IP4))
		first.kill(t)
		assert.Equal(t, "app", w.ask(t, w.pod.IP4), "killed")
		require.Len(t, w.pins(t), w.hooks(t), "the pin outlives the agent")
		second := w.start(t, "second")
		assert.Equal(t, "second", w.ask(t, w.pod.IP4))
		assert.Len(t, w.pins(t), w.hooks(t))
		assert.Len(t, w.attached(t), w.hooks(t), "the link was taken over, not a second one made")
		require.NoError(t, second.program.Detach())
		w.nothingLeft(t)
	})
}

func TestYoungerAgentTakesOver(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		old := w.start(t, "old")
		young := w.start(t, "young")
		assert.Equal(t, "young", w.ask(t, w.pod.IP4))
		assert.ErrorIs(t, old.program.Attach(w.pod), steer.ErrSuperseded)
		require.NoError(t, old.program.Detach())
		require.NoError(t, old.node.Unload())
		require.NoError(t, old.node.Sweep(func(uint64) bool { return false }))
		assert.Equal(t, "young", w.ask(t, w.pod.IP4), "the older one has left it alone")
		require.NoError(t, young.node.Unload())
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		w.nothingLeft(t)
	})
}

func TestRenewedAgentTakesBackWhatADeadOneHad(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		old := w.start(t, "old")
		young := w.start(t, "young")
		require.ErrorIs(t, old.program.Attach(w.pod), steer.ErrSuperseded)
		young.kill(t)
		require.Equal(t, "app", w.ask(t, w.pod.IP4))
		old.node.Renew()
		require.NoError(t, old.program.Attach(w.pod))
		assert.Equal(t, "old", w.ask(t, w.pod.IP4))
		assert.Len(t, w.attached(t), w.hooks(t))
		require.NoError(t, old.program.Detach())
		w.nothingLeft(t)
	})
}

func TestManyAgentsAtOnceLeaveOneOwner(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		agents := make([]*agent, 8)
		for i := range agents {
			agents[i] = w.start(t, fmt.Sprint(i)) // each is younger than the one before
		}
		rounds := 50
		if testing.Short() {
			rounds = 15
		}
		var all sync.WaitGroup
		for _, a := range agents {
			all.Go(func() {
				for range rounds {
					if err := a.program.Attach(w.pod); err != nil {
						assert.ErrorIs(t, err, steer.ErrSuperseded)
					}
					assert.NoError(t, a.node.Sweep(func(uint64) bool { return true }))
				}
			})
		}
		all.Wait()
		assert.Equal(t, "7", w.ask(t, w.pod.IP4))
		assert.Len(t, w.pins(t), w.hooks(t))
		for _, a := range agents {
			all.Go(func() { assert.NoError(t, a.program.Detach()) })
		}
		all.Wait()
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		w.nothingLeft(t)
	})
}
