// SPDX-License-Identifier: Apache-2.0

// Package http1 takes one client connection that speaks HTTP/1 request by request: those that match
// an intercept go through a tunnel to a laptop, all others to the app, and the client sees the
// responses in the order of its requests. Package nodeagent/http1 finds where messages end.
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
package http1

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/http2"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// Target is the intercepted port of a pod, as this connection to it sees it.
type Target interface {
	// Dial begins to connect to the app. soon says that there is something to be written at once. If
	// it returns a wait, there is a connection when that has returned.
	Dial(soon bool) (app stream.Duplex, wait func(context.Context) error, err error)
	// Match returns the intercept that a request matches, or nil if it is the app's.
	Match(head match.Head) divert.Intercept
	// Matchable reports whether any request could match an intercept at this moment.
	Matchable() bool
	// Copy begins the copies of a request that goes to the app; nil: nobody wants one.
	Copy(head *http1.Request) tap.Copies
	// Began is called once with the first bytes that the client sent, as soon as it is certain
	// whether they are HTTP.
	Began(first []byte, http bool)
	// Unread is called with the beginning of a request that passes unread, and why.
	Unread(p []byte, doubt error)
	// Passed is called for each n requests that go to the app.
	Passed(n int)
	// Recovered is called with what a goroutine of the connection panicked with. The connection is
	// reset then.
	Recovered(v any)
}

// Config is what a Conn works with.
type Config struct {
	Client stream.Duplex
	Target Target
	// HTTP2 is the target of a connection that begins with the preface of HTTP/2. nil: the app has
	// such a connection unread.
	HTTP2 http2.Target
	// OpenTimeout is how long a laptop may take to answer OPEN.
	OpenTimeout time.Duration
	Budget      *budget.Budget // nil: there is none
	Log         *slog.Logger
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

// errBusy is why a connection turns raw, or a request is not offered to a laptop.
var errBusy = divert.New(divert.Busy, "the node agent holds too many bytes for other requests")

// Why requests are not the laptop's.
var (
	errAppNotHTTP = divert.New(divert.AppNotHTTP, "the app says something that cannot be read as HTTP")
	errFraming    = divert.New(divert.Framing, "the request's body can be read in more than one way")
	errTLS        = divert.New(divert.LocalTLS, "the local process speaks only TLS")
)

// Conn is one client connection.
type Conn struct {
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
	doubt error     // why what the client sent passes to the app unread
	ex    *exchange // the last one that went to a laptop, if it may still be unanswered

	raw atomic.Bool // all that follows is the app's; set with mu held

	mu       sync.Mutex
	changed  sync.Cond
	app      *peer       // nil: none, the next request has to dial
	tunnels  []*peer     // idle ones, and the one that has the turn
	turn     *peer       // whose responses the client gets
	matched  bool        // the last request was diverted
	switched *peer       // the tunnel that the client's connection was switched to
	appDoubt error       // why what the app sends, and so all that the client sends, passes unread
	http     bool        // the app has been sent requests, and nothing but
	gone     bool        // the client sends no more
	linger   bool        // the client's read deadline means the end
	spoken   bool        // the client has shown what it speaks
	http2    *http2.Conn // who has taken the connection over
	closing  bool        // the client was sent all that it gets
	leaving  bool        // the connection is to end now, if the client has begun no request
	aborted  bool
	account  budget.Account
	waits    int // memory of a head that is not complete
	kept     int // bytes of the exchange that may have to be sent again
}

// Serve serves the connection until it is over, and closes the client. When parent is cancelled, it
// is reset, or wound up: see divert.ErrDrained.
func Serve(parent context.Context, cfg Config) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	c := &Conn{Config: cfg, ctx: ctx, cancel: cancel, first: true}
	c.changed.L = &c.mu
	c.account.Budget = cfg.Budget
	c.req.Reset()
	stop := context.AfterFunc(parent, func() {
		if errors.Is(context.Cause(parent), divert.ErrDrained) {
			c.windUp()
			return
		}
		c.abort()
	})

	c.guard(func() {
		c.firstApp()
		err := c.requests()
		c.in.Free()
		c.finish(err)
	})
	c.wg.Wait()
	stop()
	c.closePeers()
	c.account.Set(0)
	c.Client.Close()
}

// awaits charges the connection for a head that is not complete, and reports whether there is room
// for it.
func (c *Conn) awaits() bool {
	n := 0
	if c.in.Len() > 0 {
		n = c.in.Cost()
	} else if c.waits == 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.account.Set(n + c.kept) {
		return false
	}
	c.waits = n
	return true
}

// awaitsNone says that nobody looks for heads any more.
func (c *Conn) awaitsNone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = 0
	c.account.Set(c.kept)
}

// keep charges the connection for n bytes of an exchange, and reports whether there is room for them.
// mu is held.
func (c *Conn) keep(n int) bool {
	if !c.account.Set(c.waits + n) {
		return false
	}
	c.kept = n
	return true
}

// forget lets go of the bytes of an exchange. mu is held.
func (c *Conn) forget(ex *exchange) {
	ex.sent, ex.whole = nil, false
	c.keep(0)
}

// guard runs f, and keeps its panic from all other connections.
func (c *Conn) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			c.Target.Recovered(v)
			c.abort()
		}
	}()
	f()
}

func (c *Conn) spawn(f func()) { c.wg.Go(func() { c.guard(f) }) }

// finish does what the end of the requests asks for, so that all peers end.
func (c *Conn) finish(err error) {
	switch {
	case errors.Is(err, errClosing):
		c.drain()
		c.closePeers()
	case errors.Is(err, errAborted):
		c.abort()
	}
}

// abort resets the client and all peers.
func (c *Conn) abort() {
	c.mu.Lock()
	peers := c.peers()
	c.aborted = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.cancel() // a dial, or the opening of a tunnel
	c.Client.Reset()
	for _, p := range peers {
		p.Reset()
	}
}

func (c *Conn) closePeers() {
	c.mu.Lock()
	peers := c.peers()
	c.closing = true
	c.changed.Broadcast()
	c.mu.Unlock()
	for _, p := range peers {
		p.Close()
	}
}

// peers returns all that are connected. mu is held.
func (c *Conn) peers() []*peer {
	var all []*peer
	if c.app != nil && c.app.Duplex != nil {
		all = append(all, c.app)
	}
	return append(all, c.tunnels...)
}

// await waits until ok, which is called with mu held, is true. Meanwhile it mends an exchange that
// failed. It is called by the goroutine that reads requests.
func (c *Conn) await(ok func() bool) error {
	for {
		failed, err := c.wait(ok)
		if !failed {
			return err
		}
		if err := c.mend(); err != nil {
			return err
		}
	}
}

// wait is await that returns when an exchange failed.
func (c *Conn) wait(ok func() bool) (failed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.aborted:
			return false, errAborted
		case c.closing:
			return false, errClosing
		case c.ex != nil && c.ex.peer.failed:
			return true, nil
		case ok():
			return false, nil
		case c.ex != nil && c.ex.peer.opaque && !c.gone:
			// Nobody knows whether the client has had its response: it must ask again on another
			// connection.
			c.conclude()
			return false, errClosing
		}
		c.changed.Wait()
	}
}

// idle reports whether all requests have been answered. mu is held.
func (c *Conn) idle() bool { return c.turn == nil || c.turn.unanswered.len() == 0 }

// fill reads from the client. io.EOF is its half-close.
func (c *Conn) fill() error {
	for {
		err := c.Client.Fill(&c.in)
		if err == nil || !stream.IsReset(err) && !stream.Interrupted(err) {
			return err
		}
		if !stream.Interrupted(err) {
			c.mu.Lock()
			closing := c.closing
			c.mu.Unlock()
			if closing {
				return errClosing
			}
			return errAborted
		}
		if c.leave() {
			return errClosing
		}
		c.mu.Lock()
		failed, linger, aborted := c.ex != nil && c.ex.peer.failed, c.linger, c.aborted
		if !failed && !linger && !aborted {
			c.Client.SetReadDeadline(time.Time{}) // from an exchange that is mended
		}
		c.mu.Unlock()
		switch {
		case aborted:
			return errAborted
		case failed:
			if err := c.mend(); err != nil {
				return err
			}
		case linger:
			return errClosing
		}
	}
}

// lingering tells the client that it has had all that it gets, and bounds how long it may go on
// sending. mu is held.
func (c *Conn) lingering(most time.Duration) {
	c.linger = true
	c.Client.CloseWrite()
	c.Client.SetReadDeadline(time.Now().Add(most))
	c.changed.Broadcast()
}

// conclude ends the connection in order: the client has been sent all that it gets. mu is held.
func (c *Conn) conclude() {
	c.closing = true
	c.lingering(drainFor)
}

// drain drops what the client still sends: a close with unread bytes would be a reset, which can
// cost the client its response.
func (c *Conn) drain() {
	c.Client.SetReadDeadline(time.Now().Add(drainFor))
	defer c.in.Free()
	for {
		c.in.Free()
		if c.Client.Fill(&c.in) != nil {
			return
		}
	}
}
