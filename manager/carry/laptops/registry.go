// SPDX-License-Identifier: Apache-2.0

// Package laptops knows which laptops are connected, and keeps the streams on which they wait for
// connections.
package laptops

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/manager/carry/gate"
	"sidestep.dev/sidestep/manager/carry/parking"
	"sidestep.dev/sidestep/manager/changes"
)

// MaxSessions bounds how many laptops can be connected.
const MaxSessions = 10_000

// limits bound the streams that laptops park. A laptop keeps far fewer parked in all but bursts.
var limits = parking.Limits{PerPeer: 64, InAll: 100_000, Waiting: 1024}

// unprovenStreams is how many streams a session may park that is not proven; a laptop parks eight.
const unprovenStreams = 16

var errFull = errors.New("too many sessions")

// Registry holds the sessions, keyed by the SHA-256 of their keys. It is safe for concurrent use.
type Registry struct {
	lot     *parking.Lot
	changes *changes.Set[string]
	holds   func(keyHash string) bool // whether the session has business here

	mu       sync.Mutex
	sessions map[string]*session
	wiretaps map[string]string // key hashes of sessions by v1alpha1.WiretapKeyHash of them
}

// NewRegistry returns an empty registry. holds reports whether a session has business here: the API
// server vouches for its user, or an Intercept of it is in force.
func NewRegistry(holds func(keyHash string) bool) *Registry {
	return &Registry{lot: parking.NewLot(limits), holds: holds, changes: changes.NewSet[string](),
		sessions: map[string]*session{}, wiretaps: map[string]string{}}
}

// Changes returns the key hashes of laptops that have come or gone.
func (r *Registry) Changes() *changes.Set[string] { return r.changes }

// session is one connected laptop.
type session struct {
	keyHash string
	gone    chan struct{} // closed when the session has ended or been replaced
	want    chan struct{} // has a value when unasked is not zero
	unasked atomic.Int64  // streams that the laptop has not been asked to open yet
	heard   atomic.Bool   // something has come on one of its streams

	// under Registry.mu
	proven bool
	conns  map[*gate.Conn]int // calls of the session by connection
	// answers about node agents that it had, less one for every unprovenPause since asked
	answers int
	asked   time.Time
}

// A session that is not proven has so many answers about node agents at once, and then one in every
// pause: an answer that its laptop does not take stays in memory.
const (
	unprovenAnswers = 4
	unprovenPause   = 5 * time.Second
)

// mayAskForNodes reports whether a session may have an answer about node agents.
func (r *Registry) mayAskForNodes(keyHash string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[keyHash]
	if s == nil || s.proven {
		return s != nil
	}
	if passed := int(now.Sub(s.asked) / unprovenPause); passed > 0 {
		s.answers, s.asked = max(0, s.answers-passed), now
	}
	if s.answers >= unprovenAnswers {
		return false
	}
	s.answers++
	return true
}

// begin adds a session, unless there are as many as limit. A session with the same key is the same
// laptop that has reconnected, and the new session replaces it.
func (r *Registry) begin(keyHash string, limit int) (*session, error) {
	proven := r.holds(keyHash)
	s := &session{keyHash: keyHash, proven: proven, conns: map[*gate.Conn]int{},
		gone: make(chan struct{}), want: make(chan struct{}, 1)}
	r.mu.Lock()
	old := r.sessions[keyHash]
	if old == nil && len(r.sessions) >= limit {
		r.mu.Unlock()
		return nil, errFull
	}
	r.sessions[keyHash] = s
	r.wiretaps[v1alpha1.WiretapKeyHash(keyHash)] = keyHash
	if old != nil {
		close(old.gone)
	}
	r.lot.Open(keyHash, s.ask)
	if !proven {
		r.lot.Allow(keyHash, unprovenStreams)
	}
	r.mu.Unlock()
	if !proven && r.holds(keyHash) { // accepted meanwhile
		r.Prove(keyHash)
	}
	if old == nil {
		r.changes.Add(keyHash)
	}
	return s, nil
}

// Prove ends the limits of those without business here for a session, and for its connections.
func (r *Registry) Prove(keyHash string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[keyHash]
	if s == nil || s.proven {
		return
	}
	s.proven = true
	r.lot.Allow(keyHash, 0)
	for c := range s.conns {
		c.Prove("laptop " + keyHash)
	}
}

// Proven reports whether the session with this key is connected and has shown that it has business
// here.
func (r *Registry) Proven(keyHash string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[keyHash]
	return s != nil && s.proven
}

// use notes that a call of a session is on a connection, until the function that it returns is
// called. It reports false if the connection is another session's, or there is no such session.
func (r *Registry) use(keyHash string, c *gate.Conn) (done func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[keyHash]
	if s == nil || !c.Greet(keyHash) {
		return nil, false
	}
	if s.proven {
		c.Prove("laptop " + keyHash)
	}
	if c == nil {
		return func() {}, true
	}
	s.conns[c]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.conns[c]--; s.conns[c] == 0 {
			delete(s.conns, c)
		}
	}, true
}

// end removes a session, unless it has been replaced.
func (r *Registry) end(s *session) {
	r.mu.Lock()
	present := r.sessions[s.keyHash] == s
	if present {
		delete(r.sessions, s.keyHash)
		delete(r.wiretaps, v1alpha1.WiretapKeyHash(s.keyHash))
		close(s.gone)
		r.lot.Close(s.keyHash)
	}
	r.mu.Unlock()
	if present {
		r.changes.Add(s.keyHash)
	}
}

func (s *session) ask(streams int) {
	s.unasked.Add(int64(streams))
	select {
	case s.want <- struct{}{}:
	default:
	}
}

// wanted returns how many streams to ask the laptop for.
func (s *session) wanted() int { return int(s.unasked.Swap(0)) }

// Connected reports whether a laptop with this key is connected.
func (r *Registry) Connected(keyHash string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[keyHash] != nil
}

// Wiretapper returns the key hash of the connected session whose wiretaps have this hash, "" if
// there is none.
func (r *Registry) Wiretapper(hash string) (keyHash string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wiretaps[hash]
}

// Len returns the number of sessions.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// park parks a stream of the session with this key.
func (r *Registry) park(keyHash string, stream tunnel.Stream) (*parking.Stream, error) {
	r.mu.Lock()
	s := r.sessions[keyHash]
	r.mu.Unlock()
	if s == nil {
		return nil, parking.ErrAbsent
	}
	return r.lot.Park(keyHash, &heard{stream, s})
}

// Take returns a stream to the laptop with this key, for one connection. If none is parked, it asks
// the laptop for one, and waits for it for at most patience. It returns parking.ErrAbsent if the
// laptop is not connected.
func (r *Registry) Take(ctx context.Context, keyHash string, patience time.Duration) (*parking.Stream, error) {
	return r.lot.Take(ctx, keyHash, patience)
}

// heard is a stream whose frames are signs of life once a connection has it: on a slow connection what
// a session says may be behind them for long.
type heard struct {
	tunnel.Stream
	session *session
}

// Heard is called by parking.Stream.
func (h *heard) Heard() { h.session.heard.Store(true) }
