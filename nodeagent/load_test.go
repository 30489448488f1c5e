// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
)

func (w *world) steeringByRun(t *testing.T) (stop func()) {
	stop = w.run(t)
	w.steering(t, w.assign(w.wants()))
	return stop
}

// load is clients that connect, make one request, and do it again.
type load struct {
	world                           *world
	quit                            chan struct{}
	done                            sync.WaitGroup
	requests, wrong, faults, resets atomic.Int64
	first                           atomic.Value
}

// newLoad starts n clients without header, who must always reach the app, and as many with it, who
// must reach somebody.
func newLoad(t *testing.T, w *world, n int) *load {
	l := &load{world: w, quit: make(chan struct{})}
	for i := range 2 * n {
		who, ip := "", w.pod.IP4
		if i%2 == 1 {
			who = "me"
		}
		if i%4 >= 2 {
			ip = w.pod.IP6
		}
		l.done.Go(func() {
			for {
				select {
				case <-l.quit:
					return
				default:
				}
				got, err := w.get(ip, who)
				// a connection that is older than the intercept: see stop
				for who != "" && errors.Is(err, syscall.ECONNRESET) {
					l.resets.Add(1)
					got, err = w.get(ip, who)
				}
				l.requests.Add(1)
				if err != nil {
					l.faults.Add(1)
					l.first.CompareAndSwap(nil, err.Error())
				} else if who == "" && got != "app" {
					l.wrong.Add(1)
				}
			}
		})
	}
	return l
}

// stop ends the load, once there was enough to tell anything.
func (l *load) stop(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return l.requests.Load() > 20 }, time.Minute,
		10*time.Millisecond, "hardly any load, even for a slow virtual machine")
	close(l.quit)
	l.done.Wait()
	t.Logf("%d requests", l.requests.Load())
	assert.Zero(t, l.faults.Load(), "failed requests of %d, the first: %v", l.requests.Load(), l.first.Load())
	assert.Zero(t, l.wrong.Load(), "requests that reached the laptop and should not have")
	assert.Eventually(t, func() bool { return l.resets.Load() <= l.world.takenOver.Load() },
		30*time.Second, 10*time.Millisecond,
		"%d resets of requests with the header, and %d connections that were open before were taken over", l.resets.Load(), l.world.takenOver.Load())
}

func TestNoRequestFailsWhileInterceptsComeAndGo(t *testing.T) {
	for _, tc := range []struct {
		name   string
		linger time.Duration
		rounds int
		closed bool // listeners are closed between the rounds
	}{
		{"with listeners that are used again", 5 * time.Second, 25, false},
		{"with new listeners each time", 300 * time.Millisecond, 10, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if testing.Short() {
				tc.rounds /= 3
			}
			w := newWorld(t)
			w.linger = tc.linger
			w.run(t)
			l := newLoad(t, w, 4)
			for round := range tc.rounds {
				w.steering(t, w.assign(w.wants()))
				w.eventually(t, "me", "laptop")
				gone := w.assign()
				w.await(t, "gone", func(r *agentpb.Report) bool { return r.GetRevision() == gone })
				w.eventually(t, "me", "app")
				if tc.closed {
					require.Eventually(t, func() bool { return w.drained.Load() == int64(round+1) },
						30*time.Second, 10*time.Millisecond)
				}
			}
			l.stop(t)
		})
	}
}
