// SPDX-License-Identifier: Apache-2.0

// Package quota bounds what each peer has at a time.
package quota

import "sync"

// Quota counts by the name of a peer. It is safe for concurrent use.
type Quota struct {
	most int

	mu    sync.Mutex
	count map[string]int
}

// New returns a Quota that lets every peer have so many.
func New(most int) *Quota { return &Quota{most: most, count: map[string]int{}} }

// Enter counts one more for a peer, unless it has all that it may have. Each one is left once.
func (q *Quota) Enter(peer string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count[peer] >= q.most {
		return false
	}
	q.count[peer]++
	return true
}

// Leave counts one less for a peer.
func (q *Quota) Leave(peer string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count[peer]--; q.count[peer] == 0 {
		delete(q.count, peer)
	}
}
