// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/steer"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

const port = 8080

// world is a pod with an app, its node where the clients are, and what an agent does for the pod.
type world struct {
	node     *testnet.Node
	pod      *testnet.Pod
	app      *httptest
	laptop   *httptest
	counters takeover.Counters
	port     *takeover.Port
}

// httptest is an HTTP server that notes who asks, and by which connection.
type httptest struct {
	word string
	mu   sync.Mutex
	// requests with the header, and all of them by the client's address.
	marked atomic.Int64
	seen   map[string]int
	// strangers are requests without the header, and not by a proxy, on connections that were
	// steered.
	strangers atomic.Int64
	body      atomic.Value // the last one's SHA-256
	// begun and let are for requests to /wait, whose answer waits, and to /hold, whose body is not
	// read before.
	begun, let chan struct{}
	// gate is for requests to /gate: their answers wait until it is closed. waiting is how many do.
	gate    chan struct{}
	waiting int
}

func (h *httptest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("x-user") == "ann" {
		h.marked.Add(1)
	}
	h.mu.Lock()
	h.seen[r.RemoteAddr]++
	h.mu.Unlock()
	if r.URL.Path == "/hold" {
		h.begun <- struct{}{}
		<-h.let
	}
	body := sha256.New()
	_, _ = io.Copy(body, r.Body)
	h.body.Store([sha256.Size]byte(body.Sum(nil)))
	if r.URL.Path == "/wait" {
		h.begun <- struct{}{}
		<-h.let
	}
	if r.URL.Path == "/gate" {
		h.mu.Lock()
		h.waiting++
		h.mu.Unlock()
		<-h.gate
	}
	word := h.word
	if r.Header.Get("x-user") == "" && word == "laptop" {
		word = "app" // as the node agent passes on what is not the developer's
		if r.Header.Get("via") == "" {
			h.strangers.Add(1)
		}
	}
	w.Header().Set("Served-By", word)
	fmt.Fprintf(w, "%s %s\n", word, r.RemoteAddr)
}

func serve(t testing.TB, l net.Listener, word string) *httptest {
	h := &httptest{word: word, seen: map[string]int{}, begun: make(chan struct{}),
		let: make(chan struct{}), gate: make(chan struct{})}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return h
}

func newWorld(t testing.TB) *world {
	w := newWorldWithoutApp(t)
	w.app = serve(t, testnet.Listen(t, w.pod.Namespace, fmt.Sprintf(":%d", port)), "app")
	return w
}

func newWorldWithoutApp(t testing.TB) *world {
	node := testnet.NewNode(t)
	return &world{node: node, pod: node.NewPod(t)}
}

// tookOver waits until as many connections have been taken over. Clients may notice before it is
// counted.
func (w *world) tookOver(t *testing.T, n int) {
	t.Helper()
	assert.Eventually(t, func() bool { return w.counters.TakenOver.Load() >= uint64(n) },
		20*time.Second, time.Millisecond)
	assert.EqualValues(t, n, w.counters.TakenOver.Load())
}

// rule takes the requests with x-user: ann.
func rule(t testing.TB, existing string) takeover.Rule {
	t.Helper()
	r, err := annsRule(existing)
	require.NoError(t, err)
	return r
}

func annsRule(existing string) (takeover.Rule, error) {
	ann := "ann"
	m, err := match.FromSpec(
		&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-user", Value: &ann}}})
	return takeover.Rule{Intercept: "ann", HTTP: m, Existing: existing}, err
}

// idleInTests is for how long a connection has had no data before it counts as idle.
func idleInTests() time.Duration {
	if testing.Short() {
		return 2 * time.Second
	}
	return 200 * time.Millisecond
}

// watch opens the port with rules, and does not steer.
func (w *world) watch(t testing.TB, configure func(*takeover.Config), rules ...takeover.Rule) {
	t.Helper()
	cfg := takeover.Config{
		Namespace: w.pod.Namespace, Port: port, Counters: &w.counters,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Claims: func(head match.Head) string {
			for _, r := range rules {
				if !r.TCP && r.HTTP.Match(head) {
					return r.Intercept
				}
			}
			return ""
		},
	}
	if testing.Short() { // as on slow machines
		takeover.Patient(&cfg, 10*time.Second, idleInTests())
	}
	if configure != nil {
		configure(&cfg)
	}
	var err error
	w.port, err = takeover.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.port.Close()) })
	require.NoError(t, w.port.SetRules(rules))
}

// steer gives new connections to the laptop.
func (w *world) steer(t testing.TB) {
	t.Helper()
	node := steer.NewNode(testnet.BPFFS(t), "node", slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = node.Close() })
	program, err := node.Load()
	require.NoError(t, err)
	t.Cleanup(func() { _ = program.Detach(); _ = program.Close() })
	ns := podnet.Namespace{Namespace: w.pod.Namespace}
	w.laptop = &httptest{}
	for _, home := range []string{"127.0.0.1", "::1"} {
		l, err := ns.Listen(netip.MustParseAddr(home))
		require.NoError(t, err)
		require.NoError(t, program.SetListener(l))
		h := serve(t, l, "laptop")
		if w.laptop.seen == nil {
			w.laptop = h
		}
	}
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		require.NoError(t, program.Add(netip.AddrPortFrom(ip, port)))
	}
	require.NoError(t, program.Attach(w.pod))
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond): // a slow machine must not make this look dead
				_ = node.Beat()
			}
		}
	}()
	require.NoError(t, w.port.Steered())
}

// client is a connection that is kept.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, from *netns.Namespace, to netip.Addr) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := testnet.Dial(ctx, from, netip.AddrPortFrom(to, port))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return &client{c, bufio.NewReader(c)}
}

// ask sends bytes and gives who answered.
func (c *client) ask(parts ...string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	for i, part := range parts {
		if i > 0 {
			time.Sleep(20 * time.Millisecond) // so that they are not sent together
		}
		if _, err := io.WriteString(c, part); err != nil {
			return "", err
		}
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.Header.Get("Served-By"), err
}

const (
	plain  = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	marked = "GET / HTTP/1.1\r\nHost: a\r\nX-User: ann\r\n\r\n"
)

func regexRule(t testing.TB, name, expr string) match.Rule {
	t.Helper()
	m, err := match.FromSpec(&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: name, Regex: &expr}}})
	require.NoError(t, err)
	return m
}
