package router

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
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

// memoryTunnel is a tunnel whose laptop takes everything.
type memoryTunnel struct{ *end }

func (memoryTunnel) Opened(context.Context) (*tunnelpb.Opened, error) { return &tunnelpb.Opened{}, nil }
func (t memoryTunnel) Reset(string)                                   { t.reset() }

type memoryClaim struct{ laptop *server }

func (memoryClaim) Key() string         { return "key" }
func (memoryClaim) String() string      { return "shop/orders" }
func (memoryClaim) Track(func()) func() { return func() {} }
func (memoryClaim) Sent()               {}
func (memoryClaim) FellBack(error)      {}

func (c memoryClaim) Open(context.Context) (Tunnel, error) {
	near, far := pair()
	c.laptop.wg.Go(func() { c.laptop.serve(far) })
	return memoryTunnel{near}, nil
}

// through sends data through a router in pieces of that size, and returns what the client got.
func through(t *testing.T, data []byte, piece int, app, laptop *server, claim bool) string {
	outside, client := pair()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(t.Context(), Config{
			Client: client.duplex(),
			Dial: func(context.Context) (stream.Duplex, error) {
				near, far := pair()
				app.wg.Go(func() { app.serve(far) })
				return near.duplex(), nil
			},
			Claim: func(head match.Head) Claim {
				var mine bool
				head.Values("x-dev", func(v []byte) bool {
					mine = string(v) == "me"
					return !mine
				})
				if mine && claim {
					return memoryClaim{laptop}
				}
				return nil
			},
			Claimable:   func() bool { return claim },
			Passed:      func(int) {},
			OpenTimeout: time.Second,
			Recovered:   func(v any) { panic(v) },
			Log:         slog.New(slog.DiscardHandler),
		})
	}()
	for p := data; len(p) > 0; {
		n := min(piece, len(p))
		outside.Write(p[:n])
		p = p[n:]
	}
	outside.CloseWrite()
	got, err := io.ReadAll(outside)
	outside.Close()
	if err != nil {
		got = append(got, "RESET"...)
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%q: the router does not end", data)
	}
	app.wg.Wait()
	laptop.wg.Wait()
	return string(got)
}

// FuzzRouter sends anything through a router. Without a claim the app must see, and the client get, exactly what they would without a
// router. With one, the laptop must see whole claimed requests and nothing else, and no byte may get lost or change its place.
func FuzzRouter(f *testing.F) {
	const mine = "GET /mine HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\n\r\n"
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nT: u\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nT: u\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
		"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
		"\x16\x03\x01", "",
	} {
		f.Add([]byte(seed+mine+"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"), uint16(1000))
		f.Add([]byte(mine+seed+mine), uint16(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		piece := int(size) + 1
		alone, app := &server{name: "app"}, &server{name: "app"}
		near, far := pair()
		near.Write(data)
		near.CloseWrite()
		alone.serve(far)
		want, _ := io.ReadAll(near)
		if got := through(t, data, piece, app, new(server), false); got != string(want) {
			t.Errorf("%q in pieces of %d: client gets %q, without router %q", data, piece, got, want)
		}
		if !bytes.Equal(data, app.seen.Bytes()) {
			t.Errorf("%q in pieces of %d: app sees %q", data, piece, app.seen.Bytes())
		}

		app, laptop := &server{name: "app"}, &server{name: "laptop"}
		through(t, data, piece, app, laptop, true)
		if app.seen.Len()+laptop.seen.Len() > len(data) {
			t.Errorf("%q in pieces of %d: app sees %q, laptop %q", data, piece, app.seen.Bytes(), laptop.seen.Bytes())
		}
		for _, req := range laptop.got {
			if !slices.Contains(req.Header.Values("X-Dev"), "me") {
				t.Errorf("%q in pieces of %d: laptop gets a request that is not claimed: %v", data, piece, req)
			}
		}
	})
}
