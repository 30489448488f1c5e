// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// pipe is one direction of a connection in memory.
type pipe struct {
	mu      sync.Mutex
	changed sync.Cond
	bytes   []byte
	all     []byte // that were ever written
	err     error  // when bytes are read: io.EOF, a reset, or a close by the reader
	late    bool   // the read deadline has passed
	most    int    // bytes that may be unread; 0: any number, and all are kept for the test
}

func newPipe() *pipe {
	p := &pipe{}
	p.changed.L = &p.mu
	return p
}

func (p *pipe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *pipe) end(err error) {
	p.set(func() {
		if p.err == nil || p.err == io.EOF {
			p.err = err
		}
		if err != io.EOF {
			p.bytes = nil
		}
	})
}

func (p *pipe) written() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.all)
}

// end is one end of a connection in memory.
type end struct{ in, out *pipe }

// bounded makes an end's writes wait for the other end to read.
func (e *end) bounded() { e.in.most, e.out.most = 64<<10, 64<<10 }

func pair() (a, b *end) {
	x, y := newPipe(), newPipe()
	return &end{x, y}, &end{y, x}
}

func (e *end) Read(b []byte) (int, error) {
	p := e.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.late:
			return 0, os.ErrDeadlineExceeded
		case len(p.bytes) > 0:
			n := copy(b, p.bytes)
			p.bytes = p.bytes[n:]
			if p.most > 0 {
				p.bytes = append([]byte(nil), p.bytes...)
				p.changed.Broadcast()
			}
			return n, nil
		case p.err != nil:
			return 0, p.err
		}
		p.changed.Wait()
	}
}

func (e *end) Write(b []byte) (n int, err error) {
	p := e.out
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.err != nil {
			return n, syscall.EPIPE
		}
		k := len(b) - n
		if p.most > 0 {
			k = min(k, p.most-len(p.bytes))
		} else {
			p.all = append(p.all, b...)
		}
		p.bytes = append(p.bytes, b[n:n+k]...)
		n += k
		p.changed.Broadcast()
		if n == len(b) {
			return n, nil
		}
		p.changed.Wait()
	}
}

func (e *end) CloseWrite() error { e.out.end(io.EOF); return nil }
func (e *end) Close() error      { e.out.end(io.EOF); e.in.end(os.ErrClosed); return nil }
func (e *end) reset()            { e.out.end(syscall.ECONNRESET); e.in.end(os.ErrClosed) }

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.set(func() { e.in.late = !t.IsZero() && !time.Now().Before(t) })
	if d := time.Until(t); !t.IsZero() && d > 0 {
		time.AfterFunc(d, func() { e.in.set(func() { e.in.late = true }) })
	}
	return nil
}

// scene is a connection with its client, app and laptops in memory.
type scene struct {
	client, app *end // the far ends
	done        chan struct{}

	mu       sync.Mutex
	laptops  chan *end // far ends of tunnels
	refuse   error     // Open fails with it
	result   tunnelpb.Opened_Result
	matches  int
	fellBack int
	sent     int
	passed   int

	stalls bool // pipes are bounded, and what nobody reads holds up who writes
	budget *budget.Budget
}

// newScene starts a connection that matches requests with "x-dev: me".
func newScene(t testing.TB) *scene {
	return startScene(t, &scene{})
}

func startScene(t testing.TB, sc *scene) *scene {
	sc.done, sc.laptops = make(chan struct{}), make(chan *end, 100)
	far, client := pair()
	appFar, app := pair()
	if sc.stalls {
		far.bounded()
		appFar.bounded()
	}
	sc.client, sc.app = far, appFar
	cd, ad := stream.Of(client, client.reset), stream.Of(app, app.reset)
	s := New(t.Context(), Config{
		Client: cd, App: ad, Target: sc, OpenTimeout: 10 * time.Second, Budget: sc.budget,
		Log: slog.New(slog.DiscardHandler),
	})
	var wg sync.WaitGroup
	wg.Go(func() { s.FromApp(new(stream.Buffer), nil) })
	wg.Go(func() {
		var b stream.Buffer
		for b.Len() < len(http2.ClientPreface) {
			if cd.Fill(&b) != nil {
				break
			}
		}
		s.FromClient(&b)
	})
	go func() {
		wg.Wait()
		cd.Close()
		ad.Close()
		close(sc.done)
	}()
	return sc
}

// wait waits for the end of the connection.
func (sc *scene) wait(t testing.TB) {
	select {
	case <-sc.done:
	case <-time.After(20 * time.Second):
		panic("the connection does not end")
	}
}

func (sc *scene) Copy(match.Head, func() []hpack.HeaderField) tap.Copies { return nil }
func (sc *scene) Recovered(v any)                                        { panic(v) }

func (sc *scene) Passed(n int) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.passed += n
}

func (sc *scene) Match(h match.Head) divert.Intercept {
	mine := false
	h.Path()
	h.Values("x-dev", func(v []byte) bool { mine = string(v) == "me"; return !mine })
	if mine {
		sc.mu.Lock()
		sc.matches++
		sc.mu.Unlock()
		return sceneIntercept{sc}
	}
	return nil
}

type sceneIntercept struct{ *scene }

func (sceneIntercept) Key() string         { return "key" }
func (sceneIntercept) String() string      { return "shop/orders" }
func (sceneIntercept) Track(func()) func() { return func() {} }

func (c sceneIntercept) Sent()          { c.mu.Lock(); defer c.mu.Unlock(); c.sent++ }
func (c sceneIntercept) Answered()      {}
func (c sceneIntercept) Lost(error)     {}
func (c sceneIntercept) FellBack(error) { c.mu.Lock(); defer c.mu.Unlock(); c.fellBack++ }

func (c sceneIntercept) Open(context.Context) (divert.Tunnel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	near, far := pair()
	if c.stalls {
		near.bounded()
	}
	c.laptops <- far
	return sceneTunnel{near, c.result}, nil
}

type sceneTunnel struct {
	*end
	result tunnelpb.Opened_Result
}

func (t sceneTunnel) Opened(context.Context) (*tunnelpb.Opened, error) {
	return &tunnelpb.Opened{Result: t.result}, nil
}
func (t sceneTunnel) Reset(string) { t.reset() }

// script writes frames.
type script struct {
	*http2.Framer
	bytes.Buffer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newScript() *script {
	s := &script{}
	s.Framer = http2.NewFramer(&s.Buffer, nil)
	s.Framer.AllowIllegalWrites = true
	s.enc = hpack.NewEncoder(&s.block)
	return s
}

// fields encodes "name value name value"; a name that ends in ! is never indexed.
func (s *script) fields(list ...string) []byte {
	s.block.Reset()
	for i := 0; i < len(list); i += 2 {
		name, sensitive := list[i], false
		if n := len(name) - 1; n >= 0 && name[n] == '!' {
			name, sensitive = name[:n], true
		}
		s.enc.WriteField(hpack.HeaderField{Name: name, Value: list[i+1], Sensitive: sensitive})
	}
	return bytes.Clone(s.block.Bytes())
}

func (s *script) headers(id uint32, end bool, list ...string) {
	s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.fields(list...),
		EndHeaders: true, EndStream: end})
}

func (s *script) request(id uint32, end bool, list ...string) {
	s.headers(id, end, append([]string{":method", "POST", ":scheme", "http", ":path", "/p?q",
		":authority", "orders"}, list...)...)
}

// take returns what was written since the last take.
func (s *script) take() []byte {
	p := bytes.Clone(s.Bytes())
	s.Buffer.Reset()
	return p
}
