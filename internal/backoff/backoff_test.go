// SPDX-License-Identifier: Apache-2.0

package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/internal/backoff"
)

func TestPausesGrowToTheLimitAndBeginAgain(t *testing.T) {
	b := &backoff.Backoff{First: 100 * time.Millisecond, Most: time.Second}
	for round := range 2 {
		for _, due := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			due *= time.Millisecond
			got := b.Next()
			assert.GreaterOrEqual(t, got, due/2, "round %d", round)
			assert.LessOrEqual(t, got, due, "round %d", round)
		}
		b.Reset()
	}
}

func TestTheLimitMayChange(t *testing.T) {
	b := &backoff.Backoff{First: time.Second, Most: time.Second, Factor: 1.6}
	b.Next()
	b.Next()
	b.Most = 10 * time.Second
	assert.Greater(t, b.Next(), 790*time.Millisecond, "it goes on growing from where it was")
	b.Most = time.Millisecond
	assert.LessOrEqual(t, b.Next(), time.Millisecond)
}

func TestJitterSpreads(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		seen[backoff.Jitter(time.Second)] = true
	}
	assert.Greater(t, len(seen), 50)
	assert.Zero(t, backoff.Jitter(0))
}

func TestSleepIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		assert.False(t, backoff.Sleep(t.Context(), time.Minute, nil))
		assert.Equal(t, time.Minute, time.Since(begun))

		cut := make(chan struct{}, 1)
		cut <- struct{}{}
		assert.True(t, backoff.Sleep(t.Context(), time.Hour, cut))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.True(t, backoff.Sleep(ctx, time.Hour, cut))
		assert.Equal(t, time.Minute+time.Second, time.Since(begun))
	})
}
