// SPDX-License-Identifier: Apache-2.0

// Package http2 takes a client's HTTP/2 connection stream by stream: streams whose request an
// intercept claims go through a tunnel to a laptop, all others to the app.
//
// The client's connection and the app's are one to one. As long as nothing is claimed, every byte
// passes between them as it is; the frames are only looked at. With the first claimed stream the
// connection becomes mixed: frames are still forwarded one by one, SETTINGS, PING, PRIORITY and
// GOAWAY pass between client and app as before, but header blocks are encoded anew where two
// encoders meet, with the order of the fields and their never-indexed marks kept, DATA may be cut
// into other frames, and the connection's flow-control windows are accounted for (flow.go).
//
// Towards a laptop the proxy is a client of its own, with one connection for each intercept, and
// windows of its own (laptop.go). A laptop that is slow, or stopped in a debugger, holds up its own
// streams and nobody else's (diverted.go).
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
	"sidestep.dev/sidestep/nodeagent/proxy/router"
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

// Config is what a Session works with.
type Config struct {
	Client, App stream.Duplex
	// Claim returns the claim on a request, or nil if it is the app's.
	Claim func(head match.Head) router.Claim
	// Copy begins the copies of a request that goes to the app; fields gives what they are to keep
	// of it.
	Copy func(head match.Head, fields func() []hpack.HeaderField) tap.Copies
	// Passed is called for each n requests that go to the app.
	Passed func(n int)
	// OpenTimeout is how long a laptop may take to show that it speaks HTTP/2.
	OpenTimeout time.Duration
	// Recovered is called with what a goroutine of the connection panicked with. The connection is
	// reset then.
	Recovered func(v any)
	Log       *slog.Logger
}

// Session is one client connection.
type Session struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the goroutines of tunnels, and of writers

	mu      sync.Mutex
	changed sync.Cond
	toApp   *outlet
	toCli   *outlet
	up      *flow // client to app
	down    *flow // app to client
	ids     ids
	head    head

	mixed   bool // something was claimed
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

	streams  map[uint32]*diverted
	copied   copied
	buffered int // bytes that clients have sent and laptops not taken
	past     past
	laptops  []*laptop
	window0  int64 // the client's SETTINGS_INITIAL_WINDOW_SIZE
	credit   int64 // what the client is to be granted for its connection
	last     *time.Timer
}

// New makes a Session of a connection of which nothing has been passed yet. FromClient and FromApp,
// called once each, are its life.
func New(ctx context.Context, cfg Config) *Session {
	s := &Session{Config: cfg, window0: defaultWindow}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.changed.L = &s.mu
	s.toApp, s.toCli = newOutlet(cfg.App, &s.mu), newOutlet(cfg.Client, &s.mu)
	s.up, s.down = newFlow(s.toApp, s.toCli), newFlow(s.toCli, s.toApp)
	s.toCli.mid = true // until it is greeted
	s.up.data = passing{left: len(http2.ClientPreface), asIs: true}
	return s
}

// FromClient serves what the client sends, first what is in b, which starts with the preface. It
// returns when the connection is over, and leaves the closing of client and app to the caller.
func (s *Session) FromClient(b *stream.Buffer) {
	ended := false
	defer func() {
		if !ended { // by a panic
			s.abort()
		}
		s.cancel()
		b.Free()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.copied.cutAll()
	}()
	switch err := s.pump(s.Client, s.up, b); {
	case err == io.EOF:
		s.App.CloseWrite()
	case err == errClosing:
		s.farewell(b)
	case !stream.Interrupted(err): // by the app's end
		s.abort()
	}
	ended = true
	s.mu.Lock()
	for !s.appDone {
		s.changed.Wait()
	}
	s.mu.Unlock()
	s.closeLaptops()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.wg.Wait()
	if s.last != nil {
		s.last.Stop()
	}
}

// WindUp asks the client to begin no more streams, and ends the connection after a while. A GOAWAY
// that names no last stream leaves what the client has begun meanwhile to be served (RFC 9113
// §6.8); the true one follows at the end. Clients close by themselves once their streams have
// ended.
func (s *Session) WindUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw || s.closing || s.aborted || s.over || s.winding {
		return
	}
	s.winding = true
	s.toCli.pending = appendGoAway(s.toCli.pending, maxID, http2.ErrCodeNo, nil)
	s.toCli.kick(s.spawn)
	time.AfterFunc(noticeFor, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.raw && !s.closing && !s.aborted && !s.over {
			s.end(http2.ErrCodeNo, "")
		}
	})
}

// FromApp serves what the app sends, first what is in b, until it has ended. err is what has ended
// it already, or nil.
func (s *Session) FromApp(b *stream.Buffer, err error) {
	defer func() {
		b.Free()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.appDone = true
		s.changed.Broadcast()
	}()
	if err == nil || b.Len() > 0 {
		if e := s.pump(s.App, s.down, b); err == nil {
			err = e
		}
	}
	s.mu.Lock()
	over := s.closing || s.aborted
	for err == io.EOF && s.goneAt && len(s.streams) > 0 && !s.closing && !s.aborted {
		s.changed.Wait() // it has said that it would go; the laptop's streams may finish
	}
	if err == io.EOF {
		s.toCli.drained(s.spawn)
	}
	s.mu.Unlock()
	switch {
	case over:
	case err == io.EOF:
		s.Client.CloseWrite()
		s.Client.SetReadDeadline(time.Now().Add(lingerFor))
	default:
		s.abort()
	}
}

// pump takes what comes from src. It ends with an error.
func (s *Session) pump(src stream.Duplex, f *flow, b *stream.Buffer) error {
	for {
		if many := b.Len() >= stream.Size; b.Len() > 0 {
			if err := s.step(f, b); err != nil {
				return err
			}
			if s.isRaw() {
				return s.copyRaw(src, f, b)
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
			if err := s.doubtful(f, doubtTooLong); err != nil {
				return err
			}
			continue
		}
		s.mu.Lock()
		closing := s.closing
		s.mu.Unlock()
		if closing {
			return errClosing
		}
		if err == io.EOF && b.Len() > 0 { // an unfinished frame
			s.mu.Lock()
			f.to.acquire()
			f.to.forward(b.Bytes(), false)
			s.mu.Unlock()
		}
		return err
	}
}

func (s *Session) isRaw() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw
}

// copyRaw passes all that comes, unread.
func (s *Session) copyRaw(src stream.Duplex, f *flow, b *stream.Buffer) error {
	srcErr, dstErr := stream.Copy(f.to.dst, src, b)
	if srcErr != nil {
		return srcErr
	}
	return s.broken(f, dstErr)
}

// broken is for a receiver that takes no more. Of an app that has not ended the last words may
// still be on their way.
func (s *Session) broken(f *flow, err error) error {
	if f == s.down {
		return err
	}
	s.mu.Lock()
	for !s.appDone && !s.aborted && !s.closing {
		s.changed.Wait()
	}
	s.mu.Unlock()
	return err
}

// step passes on what there is in b, as far as it is complete.
func (s *Session) step(f *flow, b *stream.Buffer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for more := false; err == nil && !more && b.Len() > 0 && !s.raw; {
		more, err = s.some(f, b)
	}
	if s.passed > 0 {
		s.Passed(s.passed)
		s.passed = 0
	}
	if s.mixed {
		s.settle(f)
	}
	if _, ok := errors.AsType[doubt](err); ok {
		err = s.doubtfulLocked(f, err)
	}
	if err == nil && f.to.err != nil {
		s.mu.Unlock()
		err = s.broken(f, f.to.err)
		s.mu.Lock()
	}
	return err
}

// some passes on some of what there is in b. more says that it needs more.
func (s *Session) some(f *flow, b *stream.Buffer) (more bool, err error) {
	if !s.mixed {
		f.to.acquire() // without the lock for a while
	}
	switch {
	case s.closing:
		return false, errClosing
	case !s.mixed:
		return s.scan(f, b)
	case f.data.asIs && f.data.left > 0:
		if f == s.up {
			s.copied.frameGoesOn(b.Bytes()[:min(f.data.left, b.Len())])
		}
		f.passAsIs(b)
		return false, nil
	case f == s.down && !s.greeted:
		return s.greet(b)
	}
	return s.sort(f, b)
}

// settle has written what was added.
func (s *Session) settle(f *flow) {
	s.grantConnection()
	for _, l := range s.laptops {
		l.signal()
	}
	f.back.kick(s.spawn)
	f.to.flush()
}

// grantConnection grants the client what laptops were sent: the app will not.
func (s *Session) grantConnection() {
	if s.credit > 0 {
		s.toCli.pending = appendWindowUpdate(s.toCli.pending, 0, s.credit)
		s.credit = 0
	}
}

func (s *Session) doubtful(f *flow, why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubtfulLocked(f, why)
}

// doubtfulLocked gives up looking at the connection.
func (s *Session) doubtfulLocked(f *flow, why error) error {
	if s.raw || s.closing {
		return nil
	}
	if !s.mixed {
		s.Log.Debug("HTTP/2 connection is passed to the app unread", "reason", why, "client", f == s.up)
		s.raw = true
		s.copied.cutAll()
		return nil
	}
	s.Log.Debug("HTTP/2 connection is ended", "reason", why, "client", f == s.up)
	code := http2.ErrCodeProtocol
	switch why {
	case doubtHpack:
		code = http2.ErrCodeCompression
	case doubtLength:
		code = http2.ErrCodeFrameSize
	case doubtTooLong, doubtSettings:
		code = http2.ErrCodeEnhanceYourCalm
	}
	if f == s.down {
		code = http2.ErrCodeInternal
	}
	s.end(code, why.Error())
	return errClosing
}

// end ends a mixed connection by GOAWAY.
func (s *Session) end(code http2.ErrCode, why string) {
	s.toCli.pending = appendGoAway(s.toCli.pending, s.ids.client, code, []byte(why))
	s.closing = true
	s.toCli.kick(s.spawn)
	s.toApp.pending = appendGoAway(s.toApp.pending, 0, http2.ErrCodeNo, nil)
	s.toApp.kick(s.spawn)
	s.changed.Broadcast()
	s.Client.SetReadDeadline(time.Unix(1, 0)) // for whoever reads it
	s.last = time.AfterFunc(2*drainFor, s.abort)
}

// farewell lets the client have what it was sent last.
func (s *Session) farewell(b *stream.Buffer) {
	stop := time.AfterFunc(drainFor, s.abort)
	s.mu.Lock()
	s.toCli.drained(s.spawn)
	winding := s.winding
	s.mu.Unlock()
	stop.Stop()
	if winding {
		s.App.Close()
	} else {
		s.App.Reset()
	}
	s.Client.CloseWrite()
	s.Client.SetReadDeadline(time.Now().Add(drainFor))
	for {
		b.Free()
		if s.Client.Fill(b) != nil {
			return
		}
	}
}

// abort resets the client, the app and all laptops.
func (s *Session) abort() {
	s.mu.Lock()
	s.aborted = true
	s.changed.Broadcast()
	s.mu.Unlock()
	s.cancel()
	s.Client.Reset()
	s.App.Reset()
	s.closeLaptops()
}

// spawn runs f in a goroutine of the connection, and keeps its panic from all other connections.
func (s *Session) spawn(f func()) {
	s.wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				s.Recovered(v)
				s.abort()
			}
		}()
		f()
	})
}
