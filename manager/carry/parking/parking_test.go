// SPDX-License-Identifier: Apache-2.0

package parking

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/tunnel"
)

// idle is a stream on which nothing happens.
type idle struct {
	tunnel.Stream
	ctx context.Context
}

func (i idle) Context() context.Context { return i.ctx }

func (i idle) RecvMsg(any) error {
	<-i.ctx.Done()
	return i.ctx.Err()
}

func park(t *testing.T, l *Lot, name string) *Stream {
	t.Helper()
	s, err := l.Park(name, idle{ctx: t.Context()})
	require.NoError(t, err)
	return s
}

// wait starts a Take and returns once it waits.
func wait(t *testing.T, l *Lot, name string) (taken <-chan *Stream, failed <-chan error) {
	t.Helper()
	streams, errs := make(chan *Stream, 1), make(chan error, 1)
	go func() {
		s, err := l.Take(t.Context(), name, time.Minute)
		if err != nil {
			errs <- err
			return
		}
		streams <- s
	}()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.peers[name] != nil && len(l.peers[name].waiting) > 0
	}, 10*time.Second, time.Millisecond)
	return streams, errs
}

func TestStreamsAreTakenInTheirOrder(t *testing.T) {
	l := NewLot(Limits{})
	l.Open("laptop", nil)
	first := park(t, l, "laptop")
	park(t, l, "laptop")
	got, err := l.Take(t.Context(), "laptop", time.Minute)
	require.NoError(t, err)
	assert.Same(t, first, got)

	l = NewUninvitedLot(Limits{})
	park(t, l, "node")
	last := park(t, l, "node")
	got, err = l.Take(t.Context(), "node", time.Minute)
	require.NoError(t, err)
	assert.Same(t, last, got)
}

func TestPeersThatAreNotThere(t *testing.T) {
	l := NewLot(Limits{})
	_, err := l.Park("laptop", idle{ctx: t.Context()})
	require.ErrorIs(t, err, ErrAbsent)
	_, err = l.Take(t.Context(), "laptop", time.Minute)
	require.ErrorIs(t, err, ErrAbsent)
	l = NewUninvitedLot(Limits{})
	_, err = l.Take(t.Context(), "node", time.Millisecond)
	require.ErrorIs(t, err, ErrTimeout)
	assert.Empty(t, l.peers, "nothing is remembered of a peer that never came")
}

func TestLimitsOfStreams(t *testing.T) {
	l := NewUninvitedLot(Limits{PerPeer: 2, InAll: 3, Waiting: 1})
	park(t, l, "a")
	park(t, l, "a")
	_, err := l.Park("a", idle{ctx: t.Context()})
	require.ErrorIs(t, err, ErrFull, "per peer")
	park(t, l, "b")
	_, err = l.Park("c", idle{ctx: t.Context()})
	require.ErrorIs(t, err, ErrFull, "in all")
	assert.NotContains(t, l.peers, "c")
	s, err := l.Take(t.Context(), "a", time.Minute)
	require.NoError(t, err)
	park(t, l, "c")
	assert.Equal(t, 3, l.Parked())
	s.Release(nil)

	taken, _ := wait(t, l, "d")
	_, err = l.Take(t.Context(), "d", time.Minute)
	require.ErrorIs(t, err, ErrTimeout, "one waits already")
	d := park(t, l, "d")
	assert.Same(t, d, <-taken, "a stream that somebody waits for is not counted as parked")
}

func TestAPeerThatComesBackOwesWhatItOwedBefore(t *testing.T) {
	l := NewLot(Limits{})
	asked := make(chan int, 10)
	l.Open("laptop", func(n int) { asked <- n })
	old := park(t, l, "laptop")
	got, err := l.Take(t.Context(), "laptop", time.Minute)
	require.NoError(t, err)
	require.Same(t, old, got)
	taken, _ := wait(t, l, "laptop")
	assert.Equal(t, 1, <-asked)
	again := make(chan int, 10)
	l.Open("laptop", func(n int) { again <- n })
	assert.Equal(t, 1, <-again)
	assert.Same(t, park(t, l, "laptop"), <-taken)
	got.Release(nil)
	assert.NoError(t, old.Wait(nil), "what was in use goes on until it is released")
}

func TestAClosedLotDropsWhatIsParkedAndWhoWaits(t *testing.T) {
	l := NewLot(Limits{})
	l.Open("laptop", nil)
	parked := park(t, l, "laptop")
	l.Close("laptop")
	assert.Equal(t, codes.Aborted, status.Code(parked.Wait(nil)))
	assert.Zero(t, l.Parked())
	l.Open("laptop", func(int) {})
	_, failed := wait(t, l, "laptop")
	l.Close("laptop")
	assert.ErrorIs(t, <-failed, ErrAbsent)
}

func TestCallsOfParkedStreamsEnd(t *testing.T) {
	l := NewUninvitedLot(Limits{})
	gone, cancel := context.WithCancel(t.Context())
	s, err := l.Park("node", idle{ctx: gone})
	require.NoError(t, err)
	cancel()
	assert.Equal(t, codes.Unavailable, status.Code(s.Wait(nil)), "its peer has closed it")
	assert.Empty(t, l.peers)

	closing := make(chan struct{})
	s = park(t, l, "node")
	close(closing)
	assert.Equal(t, codes.Unavailable, status.Code(s.Wait(closing)), "the manager shuts down")

	s = park(t, l, "node")
	_, err = l.Take(t.Context(), "node", time.Minute)
	require.NoError(t, err)
	ended := make(chan error)
	go func() { ended <- s.Wait(closing) }()
	select {
	case <-ended:
		t.Fatal("a stream that is in use stays until it is released")
	case <-time.After(50 * time.Millisecond):
	}
	s.Release(nil)
	assert.NoError(t, <-ended)
}
