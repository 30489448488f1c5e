// SPDX-License-Identifier: Apache-2.0

package kube

import "sync"

// Source gives a session its cluster, with the kubeconfig's current credentials.
type Source struct {
	mu     sync.Mutex
	access Access
	last   *Cluster
	// trouble is why the kubeconfig could not be read the last time.
	trouble error
}

// NewSource returns a Source that reads the kubeconfig each time.
func NewSource(a Access) *Source {
	return &Source{access: a}
}

// Use changes the access for the next call of Cluster.
func (s *Source) Use(a Access) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = a
}

// Cluster reads the kubeconfig. While it says the same, Cluster returns the same Cluster with its
// open connections. It also does so if the kubeconfig can no longer be read: the user of a session
// wants to keep it, or to leave it.
func (s *Source) Cluster() (*Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.access.Load()
	if s.trouble = err; err != nil && s.last != nil {
		return s.last, nil
	}
	if err != nil {
		return nil, err
	}
	if s.last != nil && s.last.fingerprint == c.fingerprint && s.last.Server == c.Server {
		return s.last, nil
	}
	s.last = c
	return c, nil
}

// Trouble returns why the kubeconfig could not be read the last time, so that the earlier one is
// used. It is nil if it could.
func (s *Source) Trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

// Drop closes the connections to the API server, as Cluster.Drop does.
func (s *Source) Drop() {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last != nil {
		last.Drop()
	}
}
