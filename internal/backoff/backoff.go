// SPDX-License-Identifier: Apache-2.0

// Package backoff paces attempts that fail: each pause is longer than the one before, up to a limit,
// and random in part, so that many peers do not try at the same moment.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the pace of one series of attempts. It is not safe for concurrent use.
type Backoff struct {
	First time.Duration // the first pause
	Most  time.Duration // the limit, which may change between attempts
	// Factor is how much longer each pause is than the one before; 0 means 2.
	Factor float64

	next time.Duration
}

// Next returns how long to wait before the next attempt: between half of the pause that is due, and
// all of it.
func (b *Backoff) Next() time.Duration {
	due := min(max(b.next, b.First), b.Most)
	factor := b.Factor
	if factor == 0 {
		factor = 2
	}
	b.next = time.Duration(float64(due) * factor)
	return Jitter(due)
}

// Reset begins again with the first pause, after an attempt that succeeded.
func (b *Backoff) Reset() { b.next = 0 }

// Jitter returns a random duration between half of d and d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// Sleep waits for d. It reports whether it was cut short by a value on cut, which may be nil, or by
// the end of ctx.
func Sleep(ctx context.Context, d time.Duration, cut <-chan struct{}) (short bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-cut:
		return true
	case <-ctx.Done():
		return true
	}
}
