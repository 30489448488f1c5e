package kube

import "sync"

// Source gives a session its cluster, with the credentials that the kubeconfig has now.
type Source struct {
	mu     sync.Mutex
	access Access
	last   *Cluster
}

// NewSource makes a Source that reads the kubeconfig each time.
func NewSource(a Access) *Source {
	return &Source{access: a}
}

// Use changes the access, for the next call of Cluster.
func (s *Source) Use(a Access) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = a
}

// Cluster reads the kubeconfig. As long as it says the same, the same Cluster and its open connections are returned.
func (s *Source) Cluster() (*Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.access.Load()
	if err != nil {
		return nil, err
	}
	if s.last != nil && s.last.fingerprint == c.fingerprint && s.last.Server == c.Server {
		return s.last, nil
	}
	s.last = c
	return c, nil
}
