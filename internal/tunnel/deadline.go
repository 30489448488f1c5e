// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"
	"time"
)

// deadline is a point in time that can be moved while others wait for it.
type deadline struct {
	onPast func() // called when it has passed; may be nil
	mu     sync.Mutex
	timer  *time.Timer
	past   chan struct{} // closed once the deadline has passed
}

func newDeadline(onPast func()) *deadline {
	if onPast == nil {
		onPast = func() {}
	}
	return &deadline{onPast: onPast, past: make(chan struct{})}
}

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}

// set moves the deadline; the zero time means never. Those who wait already see an earlier
// deadline, and keep the old one if it is lifted.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.past // the timer is closing it
	}
	d.timer = nil
	select {
	case <-d.past:
		d.past = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	past := d.past
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			close(past)
			d.onPast()
		})
	} else {
		close(past)
		d.onPast()
	}
}
