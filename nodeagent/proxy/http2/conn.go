// SPDX-License-Identifier: Apache-2.0

// Package http2 takes a client's HTTP/2 connection stream by stream: streams whose request an
// intercept matches go through a tunnel to a laptop, all others to the app.
//
// The client's connection and the app's are one to one. As long as nothing is diverted, every byte
// passes between them as it is; the frames are only looked at. With the first diverted stream the
// connection becomes mixed: frames are still forwarded one by one, SETTINGS, PING, PRIORITY and
// GOAWAY pass between client and app as before, but header blocks are encoded anew where two
// encoders meet, with the order of the fields and their never-indexed marks kept, DATA may be cut
// into other frames, and the connection's flow-control windows are accounted for (flow.go).
//
// Towards a laptop the proxy is a client of its own, with one connection for each intercept, and
// windows of its own (laptop.go). A laptop that is slow, or stopped in a debugger, holds up its own
// streams and nobody else's (stream.go).
//
// What cannot be understood with certainty is passed to the app unread, with all that follows; on a
// mixed connection, where that is impossible, it ends the connection by GOAWAY.
package http2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

const (
	// lingerFor bounds how long a client is read whose app has closed.
	lingerFor = time.Minute
	// drainFor bounds how long bytes are dropped that the client sends while it gets the last
	// GOAWAY.
	drainFor = 500 * time.Millisecond
	// noticeFor is how long a client has to finish its streams that was asked to go elsewhere.
	noticeFor = time.Second
)

// errClosing is the end of a connection that was told all that it will hear.
var errClosing = errors.New("connection is being closed")

// Target is the intercepted port of a pod, as this connection to it sees it.
type Target interface {
	// Match returns the intercept that a request matches, or nil if it is the app's.
	Match(head match.Head) divert.Intercept
	// Copy begins the copies of a request that goes to the app; fields returns what they are to keep
	// of it.
	Copy(head match.Head, fields func() []hpack.HeaderField) tap.Copies
	// Passed is called for each n requests that go to the app.
	Passed(n int)
	// Recovered is called with what a goroutine of the connection panicked with. The connection is
	// reset then.
	Recovered(v any)
}

// Config is what a Conn works with.
type Config struct {
	Client, App stream.Duplex
	Target      Target
	// OpenTimeout is how long a laptop may take to show that it speaks HTTP/2.
	OpenTimeout time.Duration
	Budget      *budget.Budget // nil: there is none
	Log         *slog.Logger
}

// Conn is one client connection.
type Conn struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the goroutines of tunnels, and of writers

	mu      sync.Mutex
	changed sync.Cond
	toApp   *writer
	toCli   *writer
	up      *flow // client to app
	down    *flow // app to client
	ids     streamIDs
	head    head

	mixed   bool // something was diverted
	raw     bool // all is passed unread from here on
	closing bool // the client gets no more than it was sent
	winding bool // the client was asked to go elsewhere
	over    bool // nothing more is to be begun
	aborted bool
	appDone bool // the app's side has ended
	goneAt  bool // the app has sent GOAWAY
	greeted bool // the client has the app's first frame, before which it must not get any other
	passed  int  // requests not yet reported

	appSpoke, lapSpoke bool // the app, a laptop, has answered something since the client's last PING

	streams  map[uint32]*divertedStream
	copied   wiretapped
	buffered int    // bytes that clients have sent and laptops not taken
	kept     int    // bytes of requests' fields, and the streams themselves
	answers  int    // bytes that laptops have sent and the client not taken
	waits    [2]int // memory of incomplete frames: the client's, the app's
	account  budget.Account
	resets   resets
	past     closedStreams
	laptops  []*laptop
	window0  int64 // the client's SETTINGS_INITIAL_WINDOW_SIZE
	credit   int64 // what the client is to be granted for its connection
	last     *time.Timer
}

// New makes a Conn of a connection of which nothing has been passed yet. FromClient and FromApp,
// called once each, are its life.
func New(ctx context.Context, cfg Config) *Conn {
	c := &Conn{Config: cfg, window0: defaultWindow}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.changed.L = &c.mu
	c.account.Budget = cfg.Budget
	c.toApp, c.toCli = newWriter(cfg.App, &c.mu), newWriter(cfg.Client, &c.mu)
	c.up, c.down = newFlow(c.toApp, c.toCli), newFlow(c.toCli, c.toApp)
	c.down.from = 1
	c.toCli.mid = true // until it is greeted
	c.up.data = passing{left: len(http2.ClientPreface), asIs: true}
	return c
}

// FromClient serves what the client sends, first what is in b, which starts with the preface. It
// returns when the connection is over, and leaves the closing of client and app to the caller.
func (c *Conn) FromClient(b *stream.Buffer) {
	ended := false
	defer func() {
		if !ended { // by a panic
			c.abort()
			c.mu.Lock()
			c.over = true
			c.account.Set(0)
			c.mu.Unlock()
		}
		c.cancel()
		b.Free()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.copied.cutAll()
	}()
	switch err := c.pump(c.Client, c.up, b); {
	case err == io.EOF:
		c.App.CloseWrite()
	case err == errClosing:
		c.farewell(b)
	case !stream.Interrupted(err): // by the app's end
		c.abort()
	}
	ended = true
	c.mu.Lock()
	for !c.appDone {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.closeLaptops()
	c.mu.Lock()
	c.over = true
	c.account.Set(0)
	c.wake()
	c.mu.Unlock()
	c.wg.Wait()
	if c.last != nil {
		c.last.Stop()
	}
}

// FromApp serves what the app sends, first what is in b, until it has ended. err is what has ended
// it already, or nil.
func (c *Conn) FromApp(b *stream.Buffer, err error) {
	defer func() {
		b.Free()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.appDone = true
		c.waits[1] = 0
		c.wake()
	}()
	if err == nil || b.Len() > 0 {
		if e := c.pump(c.App, c.down, b); err == nil {
			err = e
		}
	}
	c.mu.Lock()
	over := c.closing || c.aborted
	for err == io.EOF && c.goneAt && len(c.streams) > 0 && !c.closing && !c.aborted {
		c.changed.Wait() // it has said that it would go; the laptop's streams may finish
	}
	if err == io.EOF {
		c.toCli.drained(c.spawn)
	}
	c.mu.Unlock()
	switch {
	case over:
	case err == io.EOF:
		c.Client.CloseWrite()
		c.Client.SetReadDeadline(time.Now().Add(lingerFor))
	default:
		c.abort()
	}
}

// pump takes what comes from src. It ends with an error.
func (c *Conn) pump(src stream.Duplex, f *flow, b *stream.Buffer) error {
	for {
		if many := b.Len() >= stream.Size; b.Len() > 0 {
			if err := c.step(f, b); err != nil {
				return err
			}
			if c.isRaw() {
				b.Drop(f.ahead)
				return c.copyRaw(src, f, b)
			}
			if many && b.Len() == 0 {
				b.Grow()
			}
		}
		err := src.Fill(b)
		switch {
		case err == nil:
			continue
		case errors.Is(err, stream.ErrFull):
			if err := c.doubtful(f, doubtTooLong); err != nil {
				return err
			}
			continue
		}
		c.mu.Lock()
		closing := c.closing
		c.mu.Unlock()
		if closing {
			return errClosing
		}
		if err == io.EOF && b.Len() > 0 { // an unfinished frame
			c.mu.Lock()
			f.to.acquire()
			f.to.forward(b.Bytes()[min(f.ahead, b.Len()):], false)
			c.mu.Unlock()
		}
		return err
	}
}

func (c *Conn) isRaw() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw
}

// copyRaw passes all that comes, unread.
func (c *Conn) copyRaw(src stream.Duplex, f *flow, b *stream.Buffer) error {
	c.mu.Lock()
	f.to.drained(c.spawn)
	c.mu.Unlock()
	srcErr, dstErr := stream.Copy(f.to.dst, src, b)
	if srcErr != nil {
		return srcErr
	}
	return c.broken(f, dstErr)
}

// broken is for a receiver that takes no more. Of an app that has not ended the last words may
// still be on their way.
func (c *Conn) broken(f *flow, err error) error {
	if f == c.down {
		return err
	}
	c.mu.Lock()
	for !c.appDone && !c.aborted && !c.closing {
		c.changed.Wait()
	}
	c.mu.Unlock()
	return err
}

// step passes on what there is in b, as far as it is complete.
func (c *Conn) step(f *flow, b *stream.Buffer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for more := false; err == nil && !more && b.Len() > 0 && !c.raw; {
		more, err = c.some(f, b)
	}
	if c.passed > 0 {
		c.Target.Passed(c.passed)
		c.passed = 0
	}
	if c.mixed {
		c.settle(f)
	}
	f.trim()
	c.head = head{buf: c.head.buf}
	if waits := &c.waits[f.index()]; b.Len() > 0 {
		*waits = b.Cost()
	} else {
		*waits = 0
	}
	if err == nil {
		err = c.charge()
	}
	if _, ok := errors.AsType[doubt](err); ok {
		err = c.doubtfulLocked(f, err)
	}
	if err == nil && f.to.err != nil {
		c.mu.Unlock()
		err = c.broken(f, f.to.err)
		c.mu.Lock()
	}
	return err
}

// some passes on some of what there is in b. more says that it needs more.
func (c *Conn) some(f *flow, b *stream.Buffer) (more bool, err error) {
	if !c.mixed {
		f.to.acquire() // without the lock for a while
	}
	switch {
	case c.closing:
		return false, errClosing
	case !c.mixed:
		return c.passThrough(f, b)
	case f.data.asIs && f.data.left > 0:
		if f == c.up {
			c.copied.frameGoesOn(b.Bytes()[:min(f.data.left, b.Len())])
		}
		f.passAsIs(b)
		return false, nil
	case f == c.down && (!c.greeted || f.ahead > 0):
		return c.finishFrame(b)
	}
	return c.forwardFrames(f, b)
}

// settle has written what was added.
func (c *Conn) settle(f *flow) {
	before := len(c.toCli.pending)
	c.grantConnection()
	c.toCli.echo += len(c.toCli.pending) - before
	for _, l := range c.laptops {
		l.signal()
	}
	f.back.kick(c.spawn)
	f.to.flush()
	c.awaitReader(f.back)
}

// grantConnection grants the client what laptops were sent: the app will not.
func (c *Conn) grantConnection() {
	if c.credit > 0 {
		c.toCli.pending = appendWindowUpdate(c.toCli.pending, 0, c.credit)
		c.credit = 0
	}
}

func (c *Conn) doubtful(f *flow, why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doubtfulLocked(f, why)
}

// doubtfulLocked gives up looking at the connection.
func (c *Conn) doubtfulLocked(f *flow, why error) error {
	if c.raw || c.closing {
		return nil
	}
	if d, ok := errors.AsType[doubt](why); ok {
		if limit, ok := d.limit(); ok {
			c.account.Budget.Met(limit)
		}
	}
	if c.mixed && f == c.down && !c.greeted {
		c.undivert(why)
	}
	if !c.mixed {
		c.Log.Debug("HTTP/2 connection is passed to the app unread", "reason", why, "client", f == c.up)
		c.raw = true
		c.copied.cutAll()
		return nil
	}
	c.Log.Debug("HTTP/2 connection is ended", "reason", why, "client", f == c.up)
	code := http2.ErrCodeProtocol
	switch why {
	case doubtHpack:
		code = http2.ErrCodeCompression
	case doubtLength, doubtFrame:
		code = http2.ErrCodeFrameSize
	case doubtTooLong, doubtSettings, doubtMany, doubtMemory, doubtResets:
		code = http2.ErrCodeEnhanceYourCalm
	}
	if f == c.down {
		code = http2.ErrCodeInternal
	}
	c.end(code, why.Error())
	return errClosing
}

// spawn runs f in a goroutine of the connection, and keeps its panic from all other connections.
func (c *Conn) spawn(f func()) {
	c.wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				c.Target.Recovered(v)
				c.abort()
			}
		}()
		f()
	})
}
