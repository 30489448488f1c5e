// SPDX-License-Identifier: Apache-2.0

// Package parking keeps streams that peers have opened in advance. Neither a laptop nor a node
// agent can be dialled, so each parks streams here, and a connection to the peer takes one.
package parking

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/tunnel"
)

// Why no stream was parked or taken.
var (
	// ErrAbsent means that the lot has not been opened for the peer, or was closed while Take
	// waited.
	ErrAbsent = errors.New("the peer is not connected")
	// ErrTimeout means that the peer is there, and opened no stream in time.
	ErrTimeout = errors.New("the peer opened no further stream in time")
	// ErrFull means that as many streams are parked already as there may be.
	ErrFull = errors.New("enough streams are parked")
)

// Limits bound a lot. Zero means no limit.
type Limits struct {
	PerPeer int // parked streams of one peer; beyond it Park returns ErrFull
	InAll   int // parked streams of all peers; beyond it Park returns ErrFull
	Waiting int // calls of Take that wait for one peer; beyond it Take returns ErrTimeout
}

// Lot holds parked streams by the name of their peer. It is safe for concurrent use.
type Lot struct {
	limits Limits
	// uninvited means that peers need not be announced with Open. Their newest stream is taken
	// first.
	uninvited bool

	mu     sync.Mutex
	peers  map[string]*peer
	parked int
}

// peer has a peer's parked streams or the connections that wait for one.
type peer struct {
	ask     func(streams int) // may be nil
	parked  []*Stream
	waiting []chan *Stream
	allowed int // instead of Limits.PerPeer, unless it is zero
}

// NewLot returns a lot for peers that Open announces. A peer's streams are taken in the order in
// which they were parked: laptops spread them over several connections in that order.
func NewLot(limits Limits) *Lot { return &Lot{limits: limits, peers: map[string]*peer{}} }

// NewUninvitedLot returns a lot for peers that connect without Open. The stream that was parked
// last is taken first, because it is the least likely to be dead.
func NewUninvitedLot(limits Limits) *Lot {
	return &Lot{limits: limits, uninvited: true, peers: map[string]*peer{}}
}

// Open lets a peer park streams. ask, which must not block, is called when connections wait for
// streams of the peer. If the lot is open for the peer already, the peer has reconnected: its
// parked streams are dropped, and connections that wait go on waiting for new ones.
func (l *Lot) Open(name string, ask func(streams int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[name]
	if p == nil {
		l.peers[name] = &peer{ask: ask}
		return
	}
	l.drop(p)
	p.ask = ask
	if n := len(p.waiting); n > 0 {
		ask(n)
	}
}

// Close drops a peer's parked streams and refuses new ones. Streams that are in use go on until
// they are released.
func (l *Lot) Close(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[name]
	if p == nil {
		return
	}
	delete(l.peers, name)
	l.drop(p)
	for _, w := range p.waiting {
		close(w)
	}
}

// Allow lets a peer that Open has announced park so many streams instead of Limits.PerPeer; 0 ends that.
func (l *Lot) Allow(name string, streams int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.peers[name]; p != nil {
		p.allowed = streams
	}
}

func (l *Lot) drop(p *peer) {
	for _, s := range p.parked {
		s.finish(status.Error(codes.Aborted, "the session has ended"))
	}
	l.parked -= len(p.parked)
	p.parked = nil
}

// peer returns the named peer, nil if it is not there and cannot be created by its name.
func (l *Lot) peer(name string) *peer {
	p := l.peers[name]
	if p == nil && l.uninvited {
		p = &peer{}
		l.peers[name] = p
	}
	return p
}

// tidy forgets a peer of which nothing is known, unless Open announced it.
func (l *Lot) tidy(name string, p *peer) {
	if l.uninvited && len(p.parked) == 0 && len(p.waiting) == 0 && l.peers[name] == p {
		delete(l.peers, name)
	}
}

// Park hands a stream to the connection that waits longest, or keeps it for the next one. The
// stream's call has to stay until Wait returns.
func (l *Lot) Park(name string, stream tunnel.Stream) (*Stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peer(name)
	if p == nil {
		return nil, ErrAbsent
	}
	s := &Stream{Stream: stream, lot: l, name: name, peer: p, done: make(chan error, 1),
		first: make(chan received, 1)}
	if len(p.waiting) > 0 {
		s.first <- received{none: true}
		p.waiting[0] <- s // has room for one
		p.waiting = p.waiting[1:]
		l.tidy(name, p)
		return s, nil
	}
	perPeer := cmp.Or(p.allowed, l.limits.PerPeer)
	if perPeer > 0 && len(p.parked) >= perPeer ||
		l.limits.InAll > 0 && l.parked >= l.limits.InAll {
		l.tidy(name, p)
		return nil, ErrFull
	}
	p.parked = append(p.parked, s)
	l.parked++
	go s.watch()
	return s, nil
}

// Parked returns how many streams are parked.
func (l *Lot) Parked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parked
}

// unpark takes back a stream that its peer has closed, and reports whether it was still parked.
func (l *Lot) unpark(s *Stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(s.peer.parked, s)
	if i < 0 {
		return false
	}
	s.peer.parked = slices.Delete(s.peer.parked, i, i+1)
	l.parked--
	l.tidy(s.name, s.peer)
	return true
}

// Take returns a parked stream of the peer, for one connection. If there is none, it asks the peer
// to open one, and waits for it for at most patience.
func (l *Lot) Take(ctx context.Context, name string, patience time.Duration) (*Stream, error) {
	l.mu.Lock()
	p := l.peer(name)
	if p == nil {
		l.mu.Unlock()
		return nil, ErrAbsent
	}
	if s := l.next(p); s != nil {
		l.tidy(name, p)
		l.mu.Unlock()
		return s, nil
	}
	if l.limits.Waiting > 0 && len(p.waiting) >= l.limits.Waiting {
		l.mu.Unlock()
		return nil, ErrTimeout
	}
	w := make(chan *Stream, 1)
	p.waiting = append(p.waiting, w)
	if p.ask != nil {
		p.ask(1)
	}
	l.mu.Unlock()
	return l.await(ctx, name, p, w, patience)
}

// next returns the peer's next stream whose call is still there.
func (l *Lot) next(p *peer) *Stream {
	for len(p.parked) > 0 {
		i := 0
		if l.uninvited {
			i = len(p.parked) - 1
		}
		s := p.parked[i]
		p.parked = slices.Delete(p.parked, i, i+1)
		l.parked--
		if s.Context().Err() == nil {
			return s
		}
		s.finish(status.Error(codes.Unavailable, "the stream broke"))
	}
	return nil
}

func (l *Lot) await(ctx context.Context, name string, p *peer, w chan *Stream,
	patience time.Duration) (*Stream, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	err := ErrTimeout
	select {
	case s, ok := <-w:
		if !ok {
			return nil, ErrAbsent
		}
		return s, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	l.tidy(name, p)
	select {
	case s, ok := <-w:
		if ok {
			return s, nil
		}
		return nil, ErrAbsent
	default:
		return nil, err
	}
}
