// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// tapRule is a wiretap of every request.
func tapRule() Rule {
	return Rule{InterceptUID: "tap-1", Namespace: "shop", Name: "tap", Connected: true, Wiretap: true}
}

// tapping is headerRule as a wiretap.
func tapping(t testing.TB) Rule {
	r := rule(t, "tap-1", "x-dev", "me")
	r.Wiretap = true
	return r
}

func (w *world) copies() tap.Counts { return w.target.Stats().Intercepts["tap-1"].Copies }

// patient is a world in which tunnels are opened however busy the machine is.
func patient(t *testing.T, app, local string) *world { return newWorldWith(t, app, local, time.Minute) }

// settled waits until nothing is on its way to the laptop.
func (w *world) settled() {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.proxy.copies.Bytes() == 0 }, 30*time.Second,
		time.Millisecond)
}

// witness is a server of HTTP/1 that notes the requests that it gets.
type witness struct {
	mu       sync.Mutex
	requests map[string]int
}

// serve answers each request with a body that follows from it.
func (n *witness) serve(c *net.TCPConn, r *bufio.Reader) {
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Header.Get("Expect") != "" {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		sum := sha256.New()
		size, err := io.Copy(sum, req.Body)
		if err != nil {
			return
		}
		line := fmt.Sprintf("%s %s %v %d %.4x %v", req.Method, req.RequestURI, req.Header, size,
			sum.Sum(nil), req.Trailer)
		n.mu.Lock()
		if n.requests == nil {
			n.requests = map[string]int{}
		}
		n.requests[line]++
		n.mu.Unlock()
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(line))
		if req.Method != "HEAD" {
			io.WriteString(c, line)
		}
		if req.Close {
			return
		}
	}
}

// seen says how often each request came.
func (n *witness) seen() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.requests)
}

// script is what a client says on one connection: requests of many kinds, one behind the other.
func script() []byte {
	random := rand.New(rand.NewSource(1))
	body := make([]byte, 300_000)
	random.Read(body)
	var b bytes.Buffer
	b.WriteString("GET /plain HTTP/1.1\r\nHost: orders\r\nx-ODD:  Case \r\nX-Dev: me\r\n\r\n")
	b.WriteString("HEAD /head HTTP/1.1\r\nHost: orders\r\nX-Dev: me\r\n\r\n")
	fmt.Fprintf(&b, "POST /sized HTTP/1.1\r\nHost: orders\r\nX-Dev: me\r\nContent-Length: %d\r\n\r\n%s",
		len(body), body)
	b.WriteString("POST /chunked HTTP/1.1\r\nHost: orders\r\nX-Dev: me\r\nTrailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n")
	for rest := body; len(rest) > 0; {
		n := min(len(rest), 1+random.Intn(40_000))
		fmt.Fprintf(&b, "%x;ext=1\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\nSum: 42\r\n\r\n")
	b.WriteString("PUT /expects HTTP/1.1\r\nHost: orders\r\nX-Dev: me\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
	b.WriteString("GET /last HTTP/1.1\r\nHost: orders\r\nX-Dev: me\r\nConnection: close\r\n\r\n")
	return b.Bytes()
}

// play sends the script on a connection, and gives all that comes back.
func (w *world) play(said []byte) string {
	w.t.Helper()
	c := w.connect()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	go c.Write(said)
	back, err := c.rest()
	require.NoError(w.t, err)
	return back
}

func TestAWiretapChangesNothing(t *testing.T) {
	said := script()
	// played gives what the app was sent, and the client, when some connections played the script.
	played := func(t *testing.T, rules []Rule, local string, prepare func(*laptop)) (sent, back string,
		w *world, app *witness) {
		app = &witness{}
		var mu sync.Mutex
		var sums []string
		addr := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			sum := sha256.New()
			app.serve(c, bufio.NewReader(io.TeeReader(r, sum)))
			mu.Lock()
			defer mu.Unlock()
			sums = append(sums, fmt.Sprintf("%x", sum.Sum(nil)))
		})
		timeout := time.Minute
		if prepare != nil {
			timeout = 100 * time.Millisecond
		}
		w = newWorldWith(t, addr, local, timeout)
		if prepare != nil {
			w.laptop.set(prepare)
		}
		w.target.SetRules(rules, Kubelet{})
		answers := make([]string, 5)
		var clients sync.WaitGroup
		for i := range answers {
			clients.Go(func() { answers[i] = fmt.Sprintf("%x", sha256.Sum256([]byte(w.play(said)))) })
		}
		clients.Wait()
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(sums) == len(
				answers)
		}, 10*time.Second, time.Millisecond)
		return strings.Join(sums, " "), strings.Join(answers, " "), w, app
	}
	sent, back, _, _ := played(t, nil, "", nil)
	same := func(t *testing.T, rules []Rule, local string, prepare func(*laptop)) (*world, *witness) {
		gotSent, gotBack, w, app := played(t, rules, local, prepare)
		assert.Equal(t, sent, gotSent, "what the app gets")
		assert.Equal(t, back, gotBack, "what the client gets")
		return w, app
	}
	t.Run("and the laptop gets what the app gets", func(t *testing.T) {
		for name, rule := range map[string]Rule{"all": tapRule(), "those that match": tapping(t)} {
			t.Run(name, func(t *testing.T) {
				laptop := &witness{}
				w, app := same(t, []Rule{rule}, rawServer(t, laptop.serve), nil)
				w.settled()
				assert.Equal(t, app.seen(), laptop.seen())
				assert.Equal(t, tap.Counts{Copied: 30}, w.copies())
			})
		}
	})
	t.Run("and two laptops get it", func(t *testing.T) {
		laptop, other := &witness{}, tapRule()
		other.InterceptUID = "tap-2"
		w, app := same(t, []Rule{tapRule(), other}, rawServer(t, laptop.serve), nil)
		w.settled()
		twice := app.seen()
		for k := range twice {
			twice[k] *= 2
		}
		assert.Equal(t, twice, laptop.seen())
	})
	t.Run("when nothing matches", func(t *testing.T) {
		none := rule(t, "tap-1", "x-dev", "you")
		none.Wiretap = true
		w, _ := same(t, []Rule{none}, says(t, "laptop"), nil)
		assert.Zero(t, w.copies())
		assert.Zero(t, w.laptop.opened())
	})
	t.Run("when nothing listens on the laptop", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()}, "127.0.0.1:1", nil)
		w.settled()
		assert.Equal(t, tap.Counts{Dropped: 30}, w.copies())
	})
	t.Run("when there is no manager", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()}, "", func(l *laptop) { l.gone = true })
		w.settled()
		assert.Equal(t, tap.Counts{Dropped: 30}, w.copies())
	})
	t.Run("when the laptop does not answer OPEN", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()}, says(t, "laptop"), func(l *laptop) { l.delay = t.Context().Done() })
		w.settled()
		assert.EqualValues(t, 30, w.copies().Dropped)
	})
	t.Run("when the laptop resets", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()}, rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			r.Peek(1)
			c.SetLinger(0)
		}), nil)
		w.settled()
	})
	t.Run("when the laptop hangs", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()},
			rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { <-t.Context().Done() }), nil)
		w.target.SetRules(nil, Kubelet{})
		w.settled()
	})
	t.Run("when the laptop talks nonsense without end", func(t *testing.T) {
		w, _ := same(t, []Rule{tapRule()}, rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}), nil)
		w.target.SetRules(nil, Kubelet{})
		w.settled()
	})
}

func TestAWiretapThatComesAndGoes(t *testing.T) {
	t.Run("does not disturb an intercept, whose requests it does not get", func(t *testing.T) {
		w := patient(t, says(t, "app"), says(t, "mine"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "mine GET / 0\n", c.get("/", mine))
		assert.Equal(t, "app GET / 0\n", c.get("/", ""))
		for range 3 {
			w.target.SetRules([]Rule{headerRule(t), tapRule()}, Kubelet{})
			assert.Equal(t, "mine GET / 0\n", c.get("/", mine))
			assert.Equal(t, "app GET /copied 0\n", c.get("/copied", ""))
			w.settled()
			assert.EqualValues(t, 1, w.copies().Copied)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			assert.Equal(t, "mine GET / 0\n", c.get("/", mine))
			assert.Equal(t, "app GET / 0\n", c.get("/", ""))
		}
		assert.EqualValues(t, 7, w.target.Stats().Intercepts["uid-1"].Matched)
	})
	t.Run("is not disturbed by an intercept", func(t *testing.T) {
		w := patient(t, says(t, "app"), says(t, "laptop"))
		w.target.SetRules([]Rule{tapRule()}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "app GET / 0\n", c.get("/", mine))
		w.target.SetRules([]Rule{tapRule(), headerRule(t)}, Kubelet{})
		assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
		assert.Equal(t, "app GET / 0\n", c.get("/", ""))
		w.target.SetRules([]Rule{tapRule()}, Kubelet{})
		assert.Equal(t, "app GET / 0\n", c.get("/", mine))
		w.settled()
		assert.EqualValues(t, 3, w.copies().Copied)
	})
	t.Run("gets what an intercept could not take", func(t *testing.T) {
		laptop := &witness{}
		w := patient(t, says(t, "app"), rawServer(t, laptop.serve))
		w.laptop.set(func(l *laptop_) {
			l.answer = func(open *tunnelpb.Open) tunnelpb.Opened_Result {
				if open.InterceptUid == "uid-1" {
					return tunnelpb.Opened_REFUSED
				}
				return tunnelpb.Opened_OK
			}
		})
		w.target.SetRules([]Rule{headerRule(t), tapRule()}, Kubelet{})
		assert.Equal(t, "app GET /refused 0\n", w.connect().get("/refused", mine))
		w.settled()
		assert.Len(t, laptop.seen(), 1)
	})
	t.Run("gets what an intercept took and did not answer", func(t *testing.T) {
		laptop := &witness{}
		w := patient(t, says(t, "app"), "")
		dying, living := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			http.ReadRequest(r)
		}), rawServer(t, laptop.serve)
		w.laptop.set(func(l *laptop_) {
			l.local = dying
			l.answer = func(open *tunnelpb.Open) tunnelpb.Opened_Result {
				if open.InterceptUid == "uid-1" {
					w.laptop.set(func(l *laptop_) { l.local = living })
				}
				return tunnelpb.Opened_OK
			}
		})
		w.target.SetRules([]Rule{headerRule(t), tapRule()}, Kubelet{})
		assert.Equal(t, "app GET /dead 0\n", w.connect().get("/dead", mine))
		w.settled()
		for request := range laptop.seen() {
			assert.Contains(t, request, "GET /dead")
		}
		assert.Len(t, laptop.seen(), 1)
	})
}

// laptop_ is the type laptop, where a variable has its name.
type laptop_ = laptop

func TestAWiretapOfWholeConnections(t *testing.T) {
	rule := Rule{InterceptUID: "tap-1", Connected: true, Wiretap: true, TCP: true}
	echo := func(t *testing.T) string {
		return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { io.Copy(c, r); c.CloseWrite() })
	}
	// collected is a laptop that keeps what it gets, and answers with something else.
	collected := func(t *testing.T) (addr string, all func() []string) {
		var mu sync.Mutex
		var got []string
		addr = rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			io.WriteString(c, "nobody reads this")
			p, _ := io.ReadAll(r)
			mu.Lock()
			defer mu.Unlock()
			got = append(got, string(p))
		})
		return addr, func() []string { mu.Lock(); defer mu.Unlock(); return slices.Sorted(slices.Values(got)) }
	}
	t.Run("gives the laptop what the client says", func(t *testing.T) {
		laptop, all := collected(t)
		w := patient(t, echo(t), laptop)
		w.target.SetRules([]Rule{rule}, Kubelet{})
		text := "\x16\x03\x01 not HTTP\n" + strings.Repeat("0123456789", 50_000)
		for range 3 {
			c := w.connect()
			go func() {
				c.Write([]byte(text))
				c.CloseWrite()
			}()
			back, err := c.rest()
			require.NoError(t, err)
			assert.True(t, text == back)
		}
		require.Eventually(t, func() bool { return len(all()) == 3 }, 10*time.Second, time.Millisecond)
		for _, got := range all() {
			assert.True(t, text == got)
		}
		assert.Equal(t, tap.Counts{Copied: 3}, w.copies())
		w.settled()
	})
	t.Run("leaves the requests of an intercept out", func(t *testing.T) {
		laptop, all := collected(t)
		w := patient(t, says(t, "app"), "")
		w.laptop.set(func(l *laptop_) { l.local = says(t, "mine") })
		w.target.SetRules([]Rule{headerRule(t), rule}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "mine GET / 0\n", c.get("/", mine))
		w.laptop.set(func(l *laptop_) { l.local = laptop })
		assert.Equal(t, "app GET /a 0\n", c.get("/a", ""))
		assert.Equal(t, "mine GET / 0\n", c.get("/", mine))
		assert.Equal(t, "app GET /b 0\n", c.get("/b", ""))
		c.Close()
		require.Eventually(t, func() bool { return len(all()) == 1 }, 10*time.Second, time.Millisecond)
		assert.Equal(t, "GET /a HTTP/1.1\r\nHost: orders\r\n\r\nGET /b HTTP/1.1\r\nHost: orders\r\n\r\n", all()[0])
	})
	t.Run("leaves the kubelet alone", func(t *testing.T) {
		w := newWorld(t, says(t, "app"), says(t, "laptop"))
		w.target.SetRules([]Rule{rule, func() Rule { r := tapRule(); r.InterceptUID = "tap-2"; return r }()},
			Kubelet{HTTPPaths: []string{"/healthz"}, TCP: true,
				HostIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
		probe := w.connect()
		assert.Equal(t, "app GET /healthz 0\n", probe.get("/healthz", "User-Agent: kube-probe/1.34\r\n"))
		probe.Close()
		w.connect().Close()
		require.Eventually(t, func() bool {
			return w.target.Stats().Connections == 2 &&
				w.target.Stats().Open == 0
		}, 10*time.Second, time.Millisecond)
		assert.Zero(t, w.laptop.opened())
		assert.Zero(t, w.proxy.copies.Counts())
	})
}
