// SPDX-License-Identifier: Apache-2.0

// Package changes passes keys of what has changed from those who notice a change to the one who
// acts on it, without either knowing the other.
package changes

import "sync"

// Set gathers keys of what has changed until they are taken. A key that is added twice is taken
// once. It is safe for concurrent use. The zero value is not usable.
type Set[K comparable] struct {
	wake chan struct{}

	mu   sync.Mutex
	keys map[K]struct{}
}

// NewSet returns an empty set.
func NewSet[K comparable]() *Set[K] {
	return &Set[K]{wake: make(chan struct{}, 1), keys: map[K]struct{}{}}
}

// Add adds keys. It never blocks: the number of existing keys bounds the set.
func (s *Set[K]) Add(keys ...K) {
	if len(keys) == 0 {
		return
	}
	s.mu.Lock()
	for _, k := range keys {
		s.keys[k] = struct{}{}
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Wake returns a channel that receives a value when there are keys to take.
func (s *Set[K]) Wake() <-chan struct{} { return s.wake }

// Take returns the keys that were added since the last call, in no order.
func (s *Set[K]) Take() []K {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]K, 0, len(s.keys))
	for k := range s.keys {
		keys = append(keys, k)
	}
	clear(s.keys)
	return keys
}
