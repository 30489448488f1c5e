// SPDX-License-Identifier: Apache-2.0

// Package laptops knows which laptops are connected, and keeps the streams on which they wait for
// connections.
package laptops

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Bounds of what one session, and all of them, can hold.
const (
	MaxSessions = 10_000
	maxParked   = 64
	maxWaiting  = 1024
)

// Why there is no stream to a laptop.
var (
	// ErrNoClient: no laptop is connected with this key.
	ErrNoClient = errors.New("the laptop is not connected")
	// ErrTimeout: the laptop is connected, and had no stream to spare in time.
	ErrTimeout = errors.New("the laptop took no further connection in time")

	errFull   = errors.New("too many sessions")
	errParked = errors.New("enough streams are waiting")
)

// Registry holds the sessions, keyed by the SHA-256 of their keys. It is safe for concurrent use.
type Registry struct {
	changed func(keyHash string)

	mu       sync.Mutex
	sessions map[string]*session
	wiretaps map[string]string // key hashes of sessions by v1alpha1.WiretapKeyHash of them
}

// NewRegistry makes an empty registry. changed is called, without any lock, when a laptop has come
// or gone.
func NewRegistry(changed func(keyHash string)) *Registry {
	return &Registry{changed: changed, sessions: map[string]*session{}, wiretaps: map[string]string{}}
}

// session is one connected laptop.
type session struct {
	keyHash string
	gone    chan struct{} // closed when the session has ended or been replaced
	want    chan struct{} // has a value when unasked is not zero
	heard   atomic.Bool   // something has come on one of its streams

	// under Registry.mu
	parked  []*Parked
	waiting []chan *Parked
	unasked int // waiting ones for which the laptop has not been asked to open a stream
}

// Parked is a laptop's Accept stream.
type Parked struct {
	Stream tunnel.Stream

	done    chan error    // gets a value from Release
	dropped chan struct{} // closed if the session ends while the stream is not in use
	session *session
}

// Release says that the stream is no longer in use. Without an error the laptop sees it end, with
// one it sees a reset. It is called once by whoever took the stream.
func (p *Parked) Release(err error) { p.done <- err }

// begin enters a session, unless there are as many as limit. If there is one with the same key it
// is the same laptop come back, and the new one takes its place.
func (r *Registry) begin(keyHash string, limit int) (*session, error) {
	s := &session{keyHash: keyHash, gone: make(chan struct{}), want: make(chan struct{}, 1)}
	r.mu.Lock()
	old := r.sessions[keyHash]
	if old == nil && len(r.sessions) >= limit {
		r.mu.Unlock()
		return nil, errFull
	}
	r.sessions[keyHash] = s
	r.wiretaps[v1alpha1.WiretapKeyHash(keyHash)] = keyHash
	if old != nil {
		old.drop()
		if s.waiting, old.waiting = old.waiting, nil; len(s.waiting) > 0 {
			s.ask(len(s.waiting))
		}
	}
	r.mu.Unlock()
	if old == nil {
		r.changed(keyHash)
	}
	return s, nil
}

// end takes a session out, unless it has been replaced.
func (r *Registry) end(s *session) {
	r.mu.Lock()
	present := r.sessions[s.keyHash] == s
	if present {
		delete(r.sessions, s.keyHash)
		delete(r.wiretaps, v1alpha1.WiretapKeyHash(s.keyHash))
		s.drop()
		for _, w := range s.waiting {
			close(w)
		}
		s.waiting = nil
	}
	r.mu.Unlock()
	if present {
		r.changed(s.keyHash)
	}
}

// drop lets go of the streams that wait; those in use go on until their connections end.
func (s *session) drop() {
	close(s.gone)
	for _, p := range s.parked {
		close(p.dropped)
	}
	s.parked = nil
}

func (s *session) ask(n int) {
	s.unasked += n
	select {
	case s.want <- struct{}{}:
	default:
	}
}

// wanted gives how many streams the laptop is to be asked for.
func (r *Registry) wanted(s *session) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := s.unasked
	s.unasked = 0
	return n
}

// Connected says whether a laptop with this key is connected.
func (r *Registry) Connected(keyHash string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[keyHash] != nil
}

// Wiretapper gives the key hash of the connected session that has wiretaps with this hash, or
// nothing.
func (r *Registry) Wiretapper(hash string) (keyHash string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wiretaps[hash]
}

// Len is the number of sessions.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// park gives a stream to the connection that waits longest, or keeps it for the next.
func (r *Registry) park(keyHash string, stream tunnel.Stream) (*Parked, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[keyHash]
	if s == nil {
		return nil, ErrNoClient
	}
	if len(s.waiting) == 0 && len(s.parked) >= maxParked {
		return nil, errParked
	}
	p := &Parked{Stream: &heard{stream, s}, done: make(chan error, 1), dropped: make(chan struct{}), session: s}
	s.place(p)
	return p, nil
}

// heard is a stream whose frames are signs of life: on a slow connection what a session says may be
// behind them for long.
type heard struct {
	tunnel.Stream
	session *session
}

func (h *heard) RecvMsg(m any) error {
	err := h.Stream.RecvMsg(m)
	if err == nil {
		h.session.heard.Store(true)
	}
	return err
}

func (s *session) place(p *Parked) {
	if len(s.waiting) == 0 {
		s.parked = append(s.parked, p)
		return
	}
	s.waiting[0] <- p // has room for one
	s.waiting = s.waiting[1:]
}

// unpark takes back a stream that its laptop has closed. It is false if the stream is in use.
func (r *Registry) unpark(p *Parked) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(p.session.parked, p)
	if i < 0 {
		return false
	}
	p.session.parked = slices.Delete(p.session.parked, i, i+1)
	return true
}

// Take gives a stream to the laptop with this key, for one connection. If none is parked, the
// laptop is asked for one, and Take waits for it no longer than patience.
func (r *Registry) Take(ctx context.Context, keyHash string, patience time.Duration) (*Parked, error) {
	r.mu.Lock()
	s := r.sessions[keyHash]
	if s == nil {
		r.mu.Unlock()
		return nil, ErrNoClient
	}
	for len(s.parked) > 0 {
		p := s.parked[0]
		s.parked = s.parked[1:]
		if p.Stream.Context().Err() == nil {
			r.mu.Unlock()
			return p, nil
		}
		close(p.dropped)
	}
	if len(s.waiting) >= maxWaiting {
		r.mu.Unlock()
		return nil, ErrTimeout
	}
	w := make(chan *Parked, 1)
	s.waiting = append(s.waiting, w)
	s.ask(1)
	r.mu.Unlock()
	return r.await(ctx, keyHash, w, patience)
}

func (r *Registry) await(ctx context.Context, keyHash string, w chan *Parked,
	patience time.Duration) (*Parked, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	err := ErrTimeout
	select {
	case p, ok := <-w:
		if !ok {
			return nil, ErrNoClient
		}
		return p, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// the session may be another one by now, which has taken over those that wait
	if s := r.sessions[keyHash]; s != nil {
		if i := slices.Index(s.waiting, w); i >= 0 {
			s.waiting = slices.Delete(s.waiting, i, i+1)
			return nil, err
		}
	}
	select {
	case p, ok := <-w:
		if ok {
			return p, nil
		}
		return nil, ErrNoClient
	default:
		return nil, err
	}
}
