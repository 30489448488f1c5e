// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/unanswered"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
)

// miss is one way in which the laptop does not answer a request that matches.
type miss struct {
	app, local string        // addresses; empty: servers that answer
	spoil      func(*laptop) // before the request
	busy       bool          // the node agent holds as much as it may
	away       bool          // the manager says that the laptop is not connected
	tcp        bool          // the intercept takes whole connections
	greets     bool          // the app speaks first

	lead, method, more, body string // of an HTTP/1 request
	http2                    bool   // the client speaks HTTP/2

	reason divert.Reason
	shown  string // in status and elsewhere
	client string // what the client gets: the beginning of the body
}

const (
	chunked    = "Transfer-Encoding: chunked\r\n"
	toApp      = "app "
	readTwice  = "the request can be read in more than one way, so it passed to the app unread"
	reset      = "reset"
	notReached = "the laptop could not be reached"
	closedIt   = "the local process closed the connection without an answer"
)

// misses are all ways in which a matching request is not answered by the laptop. A request on an
// HTTP/2 connection from before the intercept is not among them: nobody can read it, see
// docs/design/older-connections.md.
func misses(t *testing.T) map[string]miss {
	closes := dying(t, 1, "", false)
	alert := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		r.Peek(1)
		io.WriteString(c, "\x15\x03\x01\x00\x02\x02\x0a")
		c.CloseWrite()
		io.Copy(io.Discard, r)
	})
	silent := rawServer(t, func(_ *net.TCPConn, r *bufio.Reader) { io.Copy(io.Discard, r) })
	resets := h2cServer(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	greeting := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\napp ")
		io.Copy(io.Discard, r)
	})
	framing := func(more, body string) miss {
		return miss{more: more, body: body, reason: divert.Framing, shown: readTwice}
	}
	gone := func(l *laptop) { l.gone = true }
	all := map[string]miss{
		"two equal lengths":             framing("Content-Length: 1\r\nContent-Length: 1\r\n", "x"),
		"a list of equal lengths":       framing("Content-Length: 1, 1\r\n", "x"),
		"both framings":                 framing("Content-Length: 5\r\n"+chunked, "0\r\n\r\n"),
		"an encoding besides chunked":   framing("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
		"a leading CRLF":                {lead: "\r\n", reason: divert.Framing, shown: readTwice},
		"a space before a colon":        framing("A : b\r\n", ""),
		"a folded line":                 framing("A: b\r\n c\r\n", ""),
		"a bare LF":                     framing("A: b\n", ""),
		"a body that is not as it says": framing(chunked, "zz\r\n\r\n"),
		"a body that turns out not to be as it says": {method: "PUT", more: chunked + "X-Late: yes\r\n", body: "1\r\nx\r\n",
			reason: divert.Framing, shown: readTwice, client: reset},
		"a head over 64 KiB": {more: "A: " + strings.Repeat("b", 70_000) + "\r\n", reason: divert.HeadTooLarge,
			shown: "the request's head is larger than 64 KiB"},

		"nothing listens":            {local: "127.0.0.1:1", reason: divert.LocalRefused, shown: "nothing listens on the local port"},
		"nothing listens, HTTP/2":    {local: "127.0.0.1:1", http2: true, reason: divert.LocalRefused, shown: "nothing listens on the local port"},
		"nothing listens, tcp":       {local: "127.0.0.1:1", tcp: true, reason: divert.LocalRefused, shown: "nothing listens on the local port"},
		"no way to the laptop":       {spoil: gone, reason: divert.Unreachable, shown: notReached},
		"no way, HTTP/2":             {spoil: gone, http2: true, reason: divert.Unreachable, shown: notReached},
		"no way, tcp":                {spoil: gone, tcp: true, reason: divert.Unreachable, shown: notReached},
		"the laptop is away":         {away: true, reason: divert.Unreachable, shown: notReached},
		"the laptop is away, HTTP/2": {away: true, http2: true, reason: divert.Unreachable, shown: notReached},
		"the laptop is away, tcp":    {away: true, tcp: true, reason: divert.Unreachable, shown: notReached},
		"OPEN is not answered": {spoil: func(l *laptop) { l.delay = make(chan struct{}) },
			reason: divert.Silent, shown: "the local process did not answer in time"},
		"a local server that waits, HTTP/2": {local: silent, http2: true, reason: divert.Silent,
			shown: "the local process did not answer in time"},

		"a local server with TLS":         {local: alert, reason: divert.LocalTLS, shown: "the local process speaks only TLS"},
		"a local server with TLS, POST":   {local: alert, method: "POST", reason: divert.LocalTLS, shown: "the local process speaks only TLS"},
		"a local server with TLS, HTTP/2": {local: alert, http2: true, reason: divert.LocalTLS, shown: "the local process speaks only TLS"},
		"a local server without HTTP/2":   {http2: true, reason: divert.LocalNoHTTP2, shown: "the local process does not speak HTTP/2"},
		"a local server that closes":      {local: closes, reason: divert.LocalClosed, shown: closedIt},
		"a local server that closes, POST": {local: closes, method: "POST", reason: divert.LocalClosed, shown: closedIt,
			client: "sidestep: intercept shop/orders: the local process closed the connection before it answered.\n" +
				"The request was not given to the app instead: POST may not be done twice.\n"},
		"a local server that resets, HTTP/2": {local: resets, http2: true, reason: divert.LocalClosed, shown: closedIt, client: reset},
		"the network goes meanwhile, POST": {local: silent, method: "POST", more: "X-Cut: yes\r\n", reason: divert.Unreachable,
			shown: notReached,
			client: "sidestep: intercept shop/orders: the connection to the laptop broke before the laptop answered.\n" +
				"The request was not given to the app instead: POST may not be done twice.\n"},

		"no room": {busy: true, reason: divert.Busy, shown: "the node agent holds too many bytes for other requests"},
		"the app speaks first": {app: greeting, greets: true, reason: divert.AppNotHTTP,
			shown: "the app in the pod says something on the connection that is not HTTP, so it gets all of it"},
	}
	return all
}

func TestEachMatchThatTheLaptopDoesNotAnswerHasAReason(t *testing.T) {
	h1 := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, toApp) })
	h2 := saysH2(t, "app")
	laptop := says(t, "laptop")
	for name, c := range misses(t) {
		t.Run(name, func(t *testing.T) {
			app, local := c.app, c.local
			switch {
			case app == "" && c.http2:
				app = h2
			case app == "":
				app = h1
			}
			if local == "" {
				local = laptop
			}
			patience := impatient
			if c.reason != divert.Silent {
				patience = time.Minute
			}
			w := newWorldWith(t, app, local, patience)
			if c.spoil != nil {
				w.laptop.set(c.spoil)
			}
			rule := headerRule(t)
			if c.tcp {
				rule = tcpRule()
				rule.InterceptUID = "uid-1"
			}
			rule.Name, rule.Called, rule.Connected = "orders-12345678", "orders", !c.away
			w.target.SetRules([]Rule{rule}, Kubelet{})
			if c.busy {
				full := budget.Account{Budget: &w.proxy.budget}
				full.Owe(budget.Bytes)
			}
			got := c.request(t, w)
			if c.client == "" {
				c.client = toApp
			}
			assert.True(t, strings.HasPrefix(got, c.client), got)
			counted := func() InterceptStats { return w.target.Stats().Intercepts["uid-1"] }
			require.Eventually(t, func() bool { return counted().Unanswered[c.reason] == 1 }, time.Minute, time.Millisecond)
			var sum uint64
			for _, n := range counted().Unanswered {
				sum += n
			}
			assert.EqualValues(t, 1, sum, "it is counted once: %v", counted().Unanswered)
			assert.Zero(t, counted().Answered)
			shown := unanswered.Of(agentpb.Unanswered_Reason(c.reason))
			assert.Equal(t, c.shown, shown.What())
			assert.NotEmpty(t, shown.Advice())
		})
	}
}

// request sends the request, and returns the body of the answer, or "reset".
func (c *miss) request(t *testing.T, w *world) string {
	if c.http2 {
		return getHTTP2(t, w.addr)
	}
	conn := w.connect()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if c.greets {
		_, err := conn.r.Peek(1)
		require.NoError(t, err)
	}
	if c.method == "" {
		c.method = "GET"
	}
	conn.send("%s%s / HTTP/1.1\r\nHost: o\r\n%s%s\r\n%s", c.lead, c.method, mine, c.more, c.body)
	if c.tcp {
		conn.CloseWrite()
	}
	if strings.Contains(c.more, "X-Late") || strings.Contains(c.more, "X-Cut") {
		require.Eventually(t, func() bool { return w.target.Stats().Intercepts["uid-1"].Matched == 1 }, time.Minute,
			time.Millisecond)
		if strings.Contains(c.more, "X-Cut") {
			w.laptop.cut()
		} else {
			conn.send("zz\r\n")
		}
	}
	resp, err := http.ReadResponse(conn.r, nil)
	if err != nil {
		return reset
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusNotImplemented {
		return toApp // and it finds the request odd as well
	}
	return string(body)
}

// getHTTP2 is request for HTTP/2.
func getHTTP2(t *testing.T, addr string) string {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
	require.NoError(t, err)
	req.Header.Set("X-Dev", "me")
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return reset
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reset
	}
	return string(body)
}

func TestWhatTheLaptopAnswersIsCounted(t *testing.T) {
	for name, h2 := range map[string]bool{"HTTP/1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			app, local := says(t, "app"), says(t, "laptop")
			if h2 {
				app, local = saysH2(t, "app"), saysH2(t, "laptop")
			}
			w := newWorld(t, app, local)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			for range 3 {
				if h2 {
					assert.Equal(t, "laptop GET / 0\n", getHTTP2(t, w.addr))
				} else {
					assert.Equal(t, "laptop GET / 0\n", w.connect().get("/", mine))
				}
			}
			assert.Equal(t, InterceptStats{Matched: 3, Answered: 3}, w.target.Stats().Intercepts["uid-1"])
		})
	}
}
