// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/http1/corpus"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// server answers what net/http takes for requests, and keeps what it read.
type server struct {
	name string
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen bytes.Buffer // all bytes that arrived
	got  []*http.Request
}

func (s *server) serve(c *end) {
	defer c.CloseWrite()
	tee := io.TeeReader(c, lockedWriter{s})
	defer io.Copy(io.Discard, tee)
	br := bufio.NewReader(tee)
	for {
		req, err := http.ReadRequest(br)
		if err == io.EOF {
			return
		}
		var n int64
		if err == nil {
			n, err = io.Copy(io.Discard, req.Body)
		}
		s.mu.Lock()
		if err != nil {
			s.mu.Unlock()
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return
		}
		s.got = append(s.got, req)
		s.mu.Unlock()
		body := fmt.Sprintf("%s %s %s %d", s.name, req.Method, req.RequestURI, n)
		if req.Method == "HEAD" {
			body = ""
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if req.Close {
			return
		}
	}
}

type lockedWriter struct{ s *server }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.s.seen.Write(p)
}

// manner is how a laptop deals with what it is offered.
type manner byte

const (
	takes   manner = iota
	refuses        // does not take the tunnel
	dies           // takes the tunnel, reads something and ends it without an answer
	manners
)

// memoryTunnel is a tunnel to a laptop.
type memoryTunnel struct {
	*end
	manner manner
}

func (t memoryTunnel) Opened(context.Context) (*tunnelpb.Opened, error) {
	if t.manner == refuses {
		return &tunnelpb.Opened{Result: tunnelpb.Opened_REFUSED}, nil
	}
	return &tunnelpb.Opened{}, nil
}
func (t memoryTunnel) Reset(string) { t.reset() }

type memoryIntercept struct {
	laptop *server
	manner manner
}

func (memoryIntercept) Key() string         { return "key" }
func (memoryIntercept) String() string      { return "shop/orders" }
func (memoryIntercept) Track(func()) func() { return func() {} }
func (memoryIntercept) Sent()               {}
func (memoryIntercept) Answered()           {}
func (memoryIntercept) FellBack(error)      {}
func (memoryIntercept) Lost(error)          {}

func (c memoryIntercept) Open(context.Context) (divert.Tunnel, error) {
	near, far := pair()
	switch c.manner {
	case takes:
		c.laptop.wg.Go(func() { c.laptop.serve(far) })
	case dies:
		c.laptop.wg.Go(func() {
			far.Read(make([]byte, 1))
			far.Close()
		})
	}
	return memoryTunnel{near, c.manner}, nil
}

// memoryTarget is a port whose app is in memory.
type memoryTarget struct {
	app, laptop *server
	diverts     bool
	how         manner
	waits       bool // a connection to the app has to be waited for
}

func (m *memoryTarget) Dial(bool) (stream.Duplex, func(context.Context) error, error) {
	near, far := pair()
	m.app.wg.Go(func() { m.app.serve(far) })
	if m.waits {
		return near.duplex(), func(context.Context) error { return nil }, nil
	}
	return near.duplex(), nil, nil
}

func (m *memoryTarget) Match(head match.Head) divert.Intercept {
	var mine bool
	head.Values("x-dev", func(v []byte) bool {
		mine = string(v) == "me"
		return !mine
	})
	if mine && m.diverts {
		return memoryIntercept{m.laptop, m.how}
	}
	return nil
}

func (m *memoryTarget) Matchable() bool                { return m.diverts }
func (m *memoryTarget) Copy(*http1.Request) tap.Copies { return nil }
func (m *memoryTarget) Began([]byte, bool)             {}
func (m *memoryTarget) Unread([]byte, error)           {}
func (m *memoryTarget) Passed(int)                     {}
func (m *memoryTarget) Recovered(v any)                { panic(v) }

// through sends data through a proxy in pieces of that size, and returns what the client got.
func through(t *testing.T, data []byte, piece int, app, laptop *server, intercept bool, how manner) string {
	outside, client := pair()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(t.Context(), Config{
			Client:      client.duplex(),
			Target:      &memoryTarget{app: app, laptop: laptop, diverts: intercept, how: how, waits: piece%2 == 0},
			OpenTimeout: time.Second,
			Log:         slog.New(slog.DiscardHandler),
		})
	}()
	for p := data; len(p) > 0; {
		n := min(piece, len(p))
		outside.Write(p[:n])
		p = p[n:]
	}
	outside.CloseWrite()
	outside.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, err := io.ReadAll(outside)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q: the client waits for ever after %q", data, got)
	}
	outside.Close()
	if err != nil {
		got = append(got, "RESET"...)
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%q: the proxy does not end", data)
	}
	app.wg.Wait()
	laptop.wg.Wait()
	return string(got)
}

// isShuffle reports whether all consists of a and b, each in order.
func isShuffle(all, a, b []byte) bool {
	if len(all) != len(a)+len(b) {
		return false
	}
	ofA := map[int]bool{0: true} // how much of a may have been used up
	for k, c := range all {
		next := make(map[int]bool, len(ofA))
		for i := range ofA {
			if i < len(a) && a[i] == c {
				next[i+1] = true
			}
			if j := k - i; j < len(b) && b[j] == c {
				next[i] = true
			}
		}
		ofA = next
	}
	return ofA[len(a)]
}

// FuzzConn sends anything through a proxy, in pieces, to servers that are net/http's parser.
// Without a intercept the app must see, and the client get, exactly what they would without a proxy.
// With a laptop that takes what it is offered, the client must get the same answers in the same
// order, though the laptop's; the laptop must see diverted requests alone, and no byte may get lost,
// come twice or change its place. A laptop that refuses must leave no trace at all, one that dies
// none but a 502.
func FuzzConn(f *testing.F) {
	const mine = "GET /mine HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\n\r\n"
	n := 0
	for _, all := range []map[string]string{corpus.Ambiguous, corpus.Clear} {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if n++; len(all[name]) > 2000 {
				continue
			}
			diverted := strings.Replace(all[name], "Host: o\r\n", "Host: o\r\nX-Dev: me\r\n", 1)
			f.Add([]byte(all[name]+mine+"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"), uint16(1000), byte(n))
			f.Add([]byte(mine+diverted+mine), uint16(3), byte(n))
		}
	}
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"\x16\x03\x01", "",
	} {
		for how := range manners {
			f.Add([]byte(seed+mine+"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"), uint16(1000), byte(how))
			f.Add([]byte(mine+seed+mine), uint16(3), byte(how))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint16, how byte) {
		tryConn(t, data, int(size)+1, manner(how)%manners)
	})
}

func tryConn(t *testing.T, data []byte, piece int, how manner) {
	alone, app := &server{name: "app"}, &server{name: "app"}
	near, far := pair()
	near.Write(data)
	near.CloseWrite()
	alone.serve(far)
	all, _ := io.ReadAll(near)
	want := string(all)
	if got := through(t, data, piece, app, new(server), false, takes); got != want {
		t.Errorf("%q in pieces of %d: client gets %q, without proxy %q", data, piece, got, want)
	}
	if !bytes.Equal(data, app.seen.Bytes()) {
		t.Errorf("%q in pieces of %d: app sees %q", data, piece, app.seen.Bytes())
	}

	app, laptop := &server{name: "app"}, &server{name: "dev"}
	got := strings.ReplaceAll(through(t, data, piece, app, laptop, true, how), "dev ", "app ")
	want = strings.ReplaceAll(want, "dev ", "app ")
	got, reset := strings.CutSuffix(got, "RESET")
	seen := app.seen.Len() + laptop.seen.Len()
	fail := func(what string) {
		t.Errorf("%q in pieces of %d to a laptop of manner %d: %s; app sees %q, laptop %q, client gets %q (reset: %v), without proxy %q",
			data, piece, how, what, app.seen.Bytes(), laptop.seen.Bytes(), got, reset, want)
	}
	if before, _, is502 := strings.Cut(got, "HTTP/1.1 502 Bad Gateway\r\n"); is502 && how == dies {
		got, reset = before, true
	}
	switch {
	case reset && how == refuses:
		fail("the laptop that refuses leaves a trace")
	case reset && !strings.HasPrefix(want, got), !reset && got != want:
		fail("the client gets something else")
	case seen > len(data) || !isShuffle(data[:seen], app.seen.Bytes(), laptop.seen.Bytes()):
		fail("bytes got lost, or out of place")
	case how == refuses && seen != len(data):
		fail("the app does not get everything")
	}
	for _, req := range laptop.got {
		if !slices.Contains(req.Header.Values("X-Dev"), "me") {
			fail("laptop gets a request that is not diverted")
		}
	}
}
