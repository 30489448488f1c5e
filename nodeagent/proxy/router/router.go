// SPDX-License-Identifier: Apache-2.0

// Package router takes one client connection that speaks HTTP/1 request by request: those that an
// intercept claims go through a tunnel to a laptop, all others to the app, and the client sees the
// responses in the order of its requests.
//
// It works on streams of bytes, not on sockets. Bytes pass unaltered in both directions.
//
// Three kinds of goroutine share a connection: one reads the client's requests and is the only one
// that writes to the app and to tunnels (requests.go, exchange.go); one reads the app, and one each
// tunnel, and they write to the client, each in its turn (responses.go). A turn ends when all
// requests of a peer are answered.
//
// When anything is in doubt the connection turns raw: all that follows is the app's, in both
// directions, unread.
package router

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// Claim is an intercept's claim on a request.
type Claim interface {
	// Key is the same for all claims of one intercept. A tunnel is used again for claims with the
	// same key.
	Key() string
	// String names the intercept to its owner.
	String() string
	// Open opens a tunnel to the laptop.
	Open(ctx context.Context) (Tunnel, error)
	// Track tells the intercept of an open tunnel, and returns what is to be called when the tunnel
	// is gone. When the intercept ends, it calls retire.
	Track(retire func()) (untrack func())
	Sent()              // the request went to the laptop
	FellBack(why error) // the laptop could not take it, and the app gets it
}

// Tunnel is a *tunnel.Conn.
type Tunnel interface {
	stream.Conn
	Opened(ctx context.Context) (*tunnelpb.Opened, error)
	Reset(reason string)
}

// Config is what a Router works with.
type Config struct {
	Client stream.Duplex
	// Dial begins to connect to the app, where soon says that there is something to be written at
	// once. If it gives a wait, there is a connection when that has returned.
	Dial func(soon bool) (app stream.Duplex, wait func(context.Context) error, err error)
	// Claim returns the claim on a request, or nil if it is the app's.
	Claim func(head match.Head) Claim
	// Copy begins the copies of a request that goes to the app; nil: nobody wants one.
	Copy func(head *http1.Request) tap.Copies
	// Claimable reports whether any request could be claimed at this moment.
	Claimable func() bool
	// Began is called once with the first bytes that the client sent, as soon as it is certain
	// whether they are HTTP.
	Began func(first []byte, http bool)
	// Passed is called for each n requests that go to the app.
	Passed func(n int)
	// HTTP2 makes what takes over a connection that begins with the preface of HTTP/2. nil: the app
	// has such a connection unread.
	HTTP2 func(ctx context.Context, app stream.Duplex) HTTP2
	// OpenTimeout is how long a laptop may take to answer OPEN.
	OpenTimeout time.Duration
	// Recovered is called with what a goroutine of the connection panicked with. The connection is
	// reset then.
	Recovered func(v any)
	Log       *slog.Logger
}

const (
	// maxUnanswered requests may be on their way to the app. With more the client is not read on.
	maxUnanswered = 512
	// maxRetained bytes of a request are kept so that it can be sent again.
	maxRetained = 64 << 10
	// lingerFor bounds how long a client is served that was told that its connection is over: as
	// long as a kernel keeps a connection that an app has closed.
	lingerFor = time.Minute
	// drainFor bounds how long bytes are dropped that the client sends while it gets its last
	// response.
	drainFor = 500 * time.Millisecond
	// refusedFor bounds how long a client without a request is kept when the app takes no
	// connections.
	refusedFor = 3 * time.Second
)

// Reasons for the requests to end. What is to be done has been done then.
var (
	errAborted = errors.New("connection was reset")
	errClosing = errors.New("connection is being closed")
	errOver    = errors.New("connection is over")
)

// errUnanswered is why a request that a laptop had taken goes to the app.
var errUnanswered = errors.New("tunnel ended before there was an answer")

// Router is one client connection.
type Router struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Of the goroutine that reads requests.
	in    stream.Buffer
	req   http1.Request
	batch batch
	hold  bool      // the last request may end HTTP: nothing can be read before its response
	first bool      // no head has been read yet
	ex    *exchange // the last one that went to a laptop, if it may still be unanswered

	raw atomic.Bool // all that follows is the app's; set with mu held

	mu       sync.Mutex
	changed  sync.Cond
	app      *peer   // nil: none, the next request has to dial
	tunnels  []*peer // idle ones, and the one that has the turn
	turn     *peer   // whose responses the client gets
	matched  bool    // the last request was claimed
	switched *peer   // the tunnel that the client's connection was switched to
	http     bool    // the app has been sent requests, and nothing but
	gone     bool    // the client sends no more
	linger   bool    // the client's read deadline means the end
	spoken   bool    // the client has shown what it speaks
	http2    HTTP2   // who has taken the connection over
	closing  bool    // the client was sent all that it gets
	leaving  bool    // the connection is to end now, if the client has begun no request
	aborted  bool
}

// ErrDrained, as the cause why a context was cancelled, asks for connections to be ended in order,
// as far as that is possible soon. Any other cause has them reset.
var ErrDrained = errors.New("the time for connections to end by themselves is over")

// Run serves the connection until it is over, and closes the client. When parent is cancelled, it
// is reset, or wound up: see ErrDrained.
func Run(parent context.Context, cfg Config) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	r := &Router{Config: cfg, ctx: ctx, cancel: cancel, first: true}
	r.changed.L = &r.mu
	r.req.Reset()
	stop := context.AfterFunc(parent, func() {
		if errors.Is(context.Cause(parent), ErrDrained) {
			r.windUp()
			return
		}
		r.abort()
	})

	r.guard(func() {
		r.firstApp()
		err := r.requests()
		r.in.Free()
		r.finish(err)
	})
	r.wg.Wait()
	stop()
	r.closePeers()
	r.Client.Close()
}

// guard runs f, and keeps its panic from all other connections.
func (r *Router) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			r.Recovered(v)
			r.abort()
		}
	}()
	f()
}

func (r *Router) spawn(f func()) { r.wg.Go(func() { r.guard(f) }) }

// finish does what the end of the requests asks for, so that all peers end.
func (r *Router) finish(err error) {
	switch {
	case errors.Is(err, errClosing):
		r.drain()
		r.closePeers()
	case errors.Is(err, errAborted):
		r.abort()
	}
}

// abort resets the client and all peers.
func (r *Router) abort() {
	r.mu.Lock()
	peers := r.peers()
	r.aborted = true
	r.changed.Broadcast()
	r.mu.Unlock()
	r.cancel() // a dial, or the opening of a tunnel
	r.Client.Reset()
	for _, p := range peers {
		p.Reset()
	}
}

func (r *Router) closePeers() {
	r.mu.Lock()
	peers := r.peers()
	r.closing = true
	r.changed.Broadcast()
	r.mu.Unlock()
	for _, p := range peers {
		p.Close()
	}
}

// peers returns all that are connected. mu is held.
func (r *Router) peers() []*peer {
	var all []*peer
	if r.app != nil && r.app.Duplex != nil {
		all = append(all, r.app)
	}
	return append(all, r.tunnels...)
}

// await waits until ok, which is called with mu held, is true. Meanwhile it mends an exchange that
// failed. It is called by the goroutine that reads requests.
func (r *Router) await(ok func() bool) error {
	for {
		failed, err := r.wait(ok)
		if !failed {
			return err
		}
		if err := r.mend(); err != nil {
			return err
		}
	}
}

// wait is await that returns when an exchange failed.
func (r *Router) wait(ok func() bool) (failed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case r.aborted:
			return false, errAborted
		case r.closing:
			return false, errClosing
		case r.ex != nil && r.ex.peer.failed:
			return true, nil
		case ok():
			return false, nil
		case r.ex != nil && r.ex.peer.opaque && !r.gone:
			// Nobody knows whether the client has had its response: it must ask again on another
			// connection.
			return false, errAborted
		}
		r.changed.Wait()
	}
}

// idle reports whether all requests have been answered. mu is held.
func (r *Router) idle() bool { return r.turn == nil || r.turn.unanswered.len() == 0 }

// fill reads from the client. io.EOF is its half-close.
func (r *Router) fill() error {
	for {
		err := r.Client.Fill(&r.in)
		if err == nil || !stream.IsReset(err) && !stream.Interrupted(err) {
			return err
		}
		if !stream.Interrupted(err) {
			r.mu.Lock()
			closing := r.closing
			r.mu.Unlock()
			if closing {
				return errClosing
			}
			return errAborted
		}
		if r.leave() {
			return errClosing
		}
		r.mu.Lock()
		failed, linger, aborted := r.ex != nil && r.ex.peer.failed, r.linger, r.aborted
		if !failed && !linger && !aborted {
			r.Client.SetReadDeadline(time.Time{}) // from an exchange that is mended
		}
		r.mu.Unlock()
		switch {
		case aborted:
			return errAborted
		case failed:
			if err := r.mend(); err != nil {
				return err
			}
		case linger:
			return errClosing
		}
	}
}

// lingering tells the client that it has had all that it gets, and bounds how long it may go on
// sending. mu is held.
func (r *Router) lingering(most time.Duration) {
	r.linger = true
	r.Client.CloseWrite()
	r.Client.SetReadDeadline(time.Now().Add(most))
	r.changed.Broadcast()
}

// conclude ends the connection in order: the client has been sent all that it gets. mu is held.
func (r *Router) conclude() {
	r.closing = true
	r.lingering(drainFor)
}

// drain drops what the client still sends: a close with unread bytes would be a reset, which can
// cost the client its response.
func (r *Router) drain() {
	r.Client.SetReadDeadline(time.Now().Add(drainFor))
	defer r.in.Free()
	for {
		r.in.Free()
		if r.Client.Fill(&r.in) != nil {
			return
		}
	}
}
