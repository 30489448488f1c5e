// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// reserved reviews at a time are for addresses from which a good token has come lately, others for
	// those that nobody knows. However many strangers ask, node agents that were there before go on.
	reserved, others = 8, 8
	// perAddress bounds the reviews at a time for one address.
	perAddress = 2
	// knownFor is how long an address is known after a good token.
	knownFor = time.Hour
	// A stranger may show badTokens that are not accepted, and then one in every badPause.
	badTokens    = 8
	badPause     = time.Second
	maxAddresses = 20_000
)

var errBusy = status.Error(codes.Unavailable, "too many tokens are being reviewed")

// reviews shares out the reviews that callers can make the API server do. It is safe for concurrent
// use.
type reviews struct {
	now            func() time.Time
	known, unknown chan struct{}

	mu        sync.Mutex
	addresses map[string]*origin
}

// origin is an address from which tokens come.
type origin struct {
	slots chan struct{}

	// under reviews.mu
	users int       // calls that wait or are reviewed
	good  time.Time // when a good token came last
	bad   time.Time // when all bad ones so far are forgiven
}

func newReviews(now func() time.Time) *reviews {
	return &reviews{now: now, known: make(chan struct{}, reserved), unknown: make(chan struct{}, others),
		addresses: map[string]*origin{}}
}

// begin waits until a token from an address may be reviewed. done says what came of it.
func (r *reviews) begin(ctx context.Context, address string) (done func(error), err error) {
	o := r.enter(address)
	if o == nil {
		return nil, errBusy
	}
	if !take(ctx, o.slots) {
		r.leave(o, errBusy)
		return nil, errBusy
	}
	slots, pause := r.turn(o)
	if !rest(ctx, pause) || !take(ctx, slots) {
		<-o.slots
		r.leave(o, errBusy)
		return nil, errBusy
	}
	return func(err error) {
		<-slots
		<-o.slots
		r.leave(o, err)
	}, nil
}

func take(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func rest(ctx context.Context, pause time.Duration) bool {
	if pause <= 0 {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// enter returns the origin of an address; nil if there are too many of which something is to be
// remembered.
func (r *reviews) enter(address string) *origin {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.addresses[address]
	if o == nil {
		if len(r.addresses) >= maxAddresses {
			r.tidy()
		}
		if len(r.addresses) >= maxAddresses {
			return nil
		}
		o = &origin{slots: make(chan struct{}, perAddress)}
		r.addresses[address] = o
	}
	o.users++
	return o
}

// tidy is called with mu held.
func (r *reviews) tidy() {
	now := r.now()
	for address, o := range r.addresses {
		if o.users == 0 && now.Sub(o.good) >= knownFor && !now.Before(o.bad) {
			delete(r.addresses, address)
		}
	}
}

// turn returns which slots a token from an origin is to wait for, and how long before that.
func (r *reviews) turn(o *origin) (slots chan struct{}, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if now.Sub(o.good) < knownFor {
		return r.known, 0
	}
	if now.Before(o.bad) {
		pause = o.bad.Sub(now) - (badTokens-1)*badPause
	}
	return r.unknown, pause
}

func (r *reviews) leave(o *origin, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.users--
	now := r.now()
	switch status.Code(err) {
	case codes.OK:
		o.good = now
	case codes.Unavailable: // which says nothing about the token
	default:
		if o.bad.Before(now) {
			o.bad = now
		}
		o.bad = o.bad.Add(badPause)
	}
}
