// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/api/clientpb"
)

// dead is a link whose manager is never there; it counts the attempts.
func dead(wall func() time.Time) (*Link, *atomic.Int32) {
	var attempts atomic.Int32
	return New(Config{Log: slog.New(slog.DiscardHandler), Wall: wall,
		Dial: func(context.Context) (*Way, error) {
			attempts.Add(1)
			return nil, errors.New("not there")
		}}), &attempts
}

// running runs a link in a bubble of its own time.
func running(t *testing.T, wall func() time.Time, test func(l *Link, attempts *atomic.Int32)) {
	synctest.Test(t, func(t *testing.T) {
		l, attempts := dead(wall)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		synctest.Wait()
		test(l, attempts)
		cancel()
		<-ended
	})
}

func TestRetries(t *testing.T) {
	running(t, nil, func(l *Link, attempts *atomic.Int32) {
		state, _ := l.State()
		assert.EqualError(t, state.Err, "not there")
		assert.False(t, state.Connected)
		time.Sleep(time.Minute)
		synctest.Wait()
		early := attempts.Load()
		assert.GreaterOrEqual(t, early, int32(60), "in the first minute no pause is longer than a second")
		assert.LessOrEqual(t, early, int32(140))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		late := attempts.Load() - early
		assert.GreaterOrEqual(t, late, int32(120), "later none is longer than five")
		assert.LessOrEqual(t, late, int32(260))
	})
}

func TestHurry(t *testing.T) {
	running(t, nil, func(l *Link, attempts *atomic.Int32) {
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		before := attempts.Load()
		l.Hurry()
		synctest.Wait()
		assert.Equal(t, before+1, attempts.Load(), "at once")
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Greater(t, attempts.Load(), before+2, "and then as after a fresh loss")
	})
}

func TestSleepIsNoticed(t *testing.T) {
	var asleep atomic.Int64
	wall := func() time.Time { return time.Now().Round(0).Add(time.Duration(asleep.Load())) }
	running(t, wall, func(_ *Link, attempts *atomic.Int32) {
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		before := attempts.Load()
		asleep.Add(int64(time.Hour)) // the monotonic clock stands still meanwhile
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		assert.GreaterOrEqual(t, attempts.Load(), before+4, "no pause of five seconds")
	})
}

func TestWait(t *testing.T) {
	running(t, nil, func(l *Link, _ *atomic.Int32) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		assert.False(t, l.Wait(ctx, func(s State) bool { return s.Connected }).Connected)
		assert.GreaterOrEqual(t, l.Wait(context.Background(),
			func(s State) bool { return s.Attempts > 5 }).Attempts, 6)
	})
}

// quiet is a session on which the manager sends nothing.
type quiet struct {
	clientpb.Clients_SessionClient
	ctx context.Context
}

func (quiet) Send(*clientpb.ClientMessage) error { return nil }

func (q quiet) Recv() (*clientpb.ManagerMessage, error) {
	<-q.ctx.Done()
	return nil, q.ctx.Err()
}

func TestAnswersBehindManyBytesAreWaitedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes int64 // received each second, for a minute
		lasts time.Duration
	}{
		"a slow connection that is full":      {1 << 20, 72 * time.Second},
		"pings of the transport":              {100, 8 * time.Second},
		"a connection on which nothing comes": {0, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, _ := dead(time.Now)
				l.Serve = func(ctx context.Context, _ clientpb.ClientsClient, _ <-chan Line,
					_ <-chan uint32) {
					<-ctx.Done()
				}
				ctx, end := context.WithCancel(t.Context())
				flow := &metered{}
				go func() {
					for range 60 {
						flow.received.Add(tc.bytes)
						time.Sleep(time.Second)
					}
				}()
				began := time.Now()
				assert.ErrorContains(t, l.maintain(ctx, end, &established{stream: quiet{ctx: ctx}}, flow, &Way{}),
					"no longer answers")
				assert.Equal(t, tc.lasts, time.Since(began))
				time.Sleep(time.Hour)
			})
		})
	}
}

func TestASilentLineIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flow := &metered{}
		began := time.Now()
		go func() {
			for range 4 {
				time.Sleep(5 * time.Second) // as the manager's transport pings
				flow.received.Add(17)
			}
		}()
		assert.ErrorIs(t, flow.silent(t.Context()), errSilent)
		assert.InDelta(t, 28, time.Since(began).Seconds(), 2)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		assert.ErrorIs(t, flow.silent(ctx), context.Canceled)
	})
}
