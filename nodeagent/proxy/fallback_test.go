// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
)

func TestTheAppGetsWhatTheLaptopCannotTake(t *testing.T) {
	answers := func(r tunnelpb.Opened_Result) func(*laptop) {
		return func(l *laptop) { l.answer = func(*tunnelpb.Open) tunnelpb.Opened_Result { return r } }
	}
	for name, spoil := range map[string]func(*laptop){
		"there is no manager":           func(l *laptop) { l.gone = true },
		"the laptop is not connected":   answers(tunnelpb.Opened_NO_CLIENT),
		"the intercept is not known":    answers(tunnelpb.Opened_UNKNOWN),
		"the laptop ran out of time":    answers(tunnelpb.Opened_TIMEOUT),
		"nothing listens on the laptop": func(l *laptop) { l.local = "127.0.0.1:1" },
		"nobody answers OPEN":           func(l *laptop) { l.delay = make(chan struct{}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, says(t, "app"), says(t, "laptop"), impatient)
			w.laptop.set(spoil)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			start := time.Now()
			body := strings.Repeat("x", 300_000)
			c.send("GET /1 HTTP/1.1\r\nHost: o\r\n\r\nGET /2 HTTP/1.1\r\nHost: o\r\n%s\r\nGET /3 HTTP/1.1\r\nHost: o\r\n\r\n", mine)
			for i := 1; i <= 3; i++ {
				_, got := c.response("GET")
				assert.Equal(t, fmt.Sprintf("app GET /%d 0\n", i), got)
			}
			go c.send("POST /4 HTTP/1.1\r\nHost: o\r\n%sContent-Length: %d\r\n\r\n%s", mine, len(body), body)
			_, got := c.response("POST")
			assert.Equal(t, "app POST /4 300000\n", got)
			assert.Less(t, time.Since(start), 3*time.Second)
			counted := w.target.Stats().Intercepts["uid-1"]
			assert.EqualValues(t, 2, counted.Fallbacks)
			assert.Zero(t, counted.Matched)
			var reasons uint64
			for _, n := range counted.Unanswered {
				reasons += n
			}
			assert.EqualValues(t, 2, reasons, "each has a reason")
		})
	}
}

func TestALateAnswerIsWaitedFor(t *testing.T) {
	delay := make(chan struct{})
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.laptop.set(func(l *laptop) { l.delay = delay })
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	body := strings.Repeat("x", 1<<20)
	go c.send("POST /1 HTTP/1.1\r\nHost: o\r\n%sContent-Length: %d\r\n\r\n%s", mine, len(body), body)
	time.AfterFunc(200*time.Millisecond, func() { close(delay) })
	_, got := c.response("POST")
	assert.Equal(t, "laptop POST /1 1048576\n", got)
}

func TestALaptopThatComesBackIsUsedAgain(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
	w.laptop.set(func(l *laptop) { l.gone = true })
	w.laptop.kill()
	assert.Eventually(t, func() bool { return c.get("/", mine) == "app GET / 0\n" }, time.Second,
		time.Millisecond)
	w.laptop.set(func(l *laptop) { l.gone = false })
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
}

// dying is a local process that closes, or resets, a connection after it has read the head of the
// n-th request on it.
func dying(t *testing.T, n int, say string, reset bool) string {
	return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		for i := 1; ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if i == n {
				if req.URL.Path == "/read" {
					io.Copy(io.Discard, req.Body)
				}
				io.WriteString(c, say)
				if reset {
					c.SetLinger(0)
				}
				return
			}
			io.Copy(io.Discard, req.Body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlaptop")
		}
	})
}

func TestALaptopThatDiesWithAnAnswerOwed(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	tests := []struct {
		name, request, want string
		n                   int // request on the tunnel that it dies in
		say                 string
	}{
		{"GET before any byte goes to the app", "GET /x HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n",
			"app GET /x 0\n", 1, ""},
		{"GET after half a head goes to the app", "GET /x HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n",
			"app GET /x 0\n", 1, "HTTP/1.1 200 OK\r\nConte"},
		{"GET after an interim response goes to the app", "GET /x HTTP/1.1\r\nHost: o\r\n" + mine +
			"\r\n", "app GET /x 0\n", 1, "HTTP/1.1 102 Processing\r\n\r\n"},
		{"PUT with a body goes to the app", "PUT /x HTTP/1.1\r\nHost: o\r\n" + mine +
			"Content-Length: 5\r\n\r\nhello", "app PUT /x 5\n", 1, ""},
		{"HEAD goes to the app", "HEAD /x HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n", "", 1, ""},
		{"POST is answered with 502", "POST /x HTTP/1.1\r\nHost: o\r\n" + mine +
			"Content-Length: 5\r\n\r\nhello", "502 sidestep", 1, ""},
		{"PUT that is too long to be kept is answered with 502", "PUT /read HTTP/1.1\r\nHost: o\r\n" +
			mine + "Content-Length: 200000\r\n\r\n" + long, "502 sidestep", 1, ""},
		{"GET on a tunnel that was used goes to a new tunnel", "GET /x HTTP/1.1\r\nHost: o\r\n" + mine +
			"\r\n", "laptop", 2, ""},
		{"POST on a tunnel that was used goes to a new tunnel", "POST /x HTTP/1.1\r\nHost: o\r\n" +
			mine + "Content-Length: 5\r\n\r\nhello", "laptop", 2, ""},
	}
	for _, test := range tests {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reset %v", test.name, reset), func(t *testing.T) {
				w := newWorld(t, says(t, "app"), dying(t, test.n, test.say, reset))
				w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
				c := w.connect()
				for range test.n - 1 {
					require.Equal(t, "laptop", c.get("/", mine))
				}
				c.Write([]byte(test.request))
				method, _, _ := strings.Cut(test.request, " ")
				resp, body := c.response(method)
				if resp.StatusCode == 102 {
					resp, body = c.response(method)
				}
				if resp.StatusCode == 502 {
					assert.True(t, resp.Close)
					assert.Contains(t, body, "shop/orders")
					body = "502 " + body[:8]
				} else {
					assert.Equal(t, "app GET /after 0\n", c.get("/after", ""), "the connection goes on")
				}
				assert.Equal(t, test.want, body)
			})
		}
	}
}

func TestABodyThatIsUnderWayFollowsToTheApp(t *testing.T) {
	w := newWorld(t, says(t, "app"), dying(t, 1, "", true))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("PUT /x HTTP/1.1\r\nHost: o\r\n%sTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", mine)
	require.Eventually(t, func() bool { return w.target.Stats().Intercepts["uid-1"].Fallbacks == 1 },
		30*time.Second, time.Millisecond)
	c.send("3\r\nyou\r\n0\r\n\r\n")
	_, body := c.response("PUT")
	assert.Equal(t, "app PUT /x 8\n", body)
	assert.Equal(t, "app GET / 0\n", c.get("/", ""))
}

func TestALaptopThatDiesInAnAnswerResetsTheClient(t *testing.T) {
	for name, say := range map[string]string{
		"sized":   "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, says(t, "app"), dying(t, 1, say, false))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
			got, err := c.rest()
			assert.ErrorIs(t, err, syscall.ECONNRESET)
			assert.LessOrEqual(t, len(got), len(say))
		})
	}
}

func TestAnAnswerThatCannotBeFramedEndsTheConnection(t *testing.T) {
	lf := "HTTP/1.1 200 OK\nContent-Type: text/plain\n\nfrom netcat\n"
	w := newWorld(t, says(t, "app"), dying(t, 1, lf, false))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
	got, err := c.rest()
	assert.NoError(t, err)
	assert.Equal(t, lf, got)

	both := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
	local := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, both)
		io.Copy(io.Discard, r)
	})
	w.laptop.set(func(l *laptop) { l.local = local })
	c = w.connect()
	c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
	p := make([]byte, len(both))
	_, err = io.ReadFull(c.r, p)
	require.NoError(t, err)
	assert.Equal(t, both, string(p))
	c.send("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
	got, err = c.rest()
	assert.NoError(t, err, "the connection ends in order")
	assert.Empty(t, got, "the next request must not meet the rest of that answer")
}

func TestAnEarlyAnswerOfTheLaptopIsDelivered(t *testing.T) {
	local := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge")
		c.CloseWrite()
		io.CopyN(io.Discard, r, 1<<20)
	})
	w := newWorld(t, says(t, "app"), local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	go fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: o\r\n%sContent-Length: 50000000\r\n\r\n%s", mine,
		strings.Repeat("x", 50_000_000))
	resp, body := c.response("POST")
	assert.Equal(t, 413, resp.StatusCode)
	assert.Equal(t, "large", body)
}

func TestTheClientThatLeavesIsSeenByWhoAnswers(t *testing.T) {
	for who, more := range map[string]string{"app": "", "laptop": mine} {
		t.Run(who, func(t *testing.T) {
			begun, gone := make(chan struct{}), make(chan struct{})
			s := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				<-r.Context().Done()
				close(gone)
			})
			w := newWorld(t, s, s)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", more)
			<-begun
			c.SetLinger(0)
			c.Close()
			select {
			case <-gone:
			case <-time.After(20 * time.Second):
				t.Error("the server does not notice")
			}
		})
	}
}

func TestTheClientThatLeavesInABody(t *testing.T) {
	for who, more := range map[string]string{"app": "", "laptop": mine} {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reset %v", who, reset), func(t *testing.T) {
				begun, result := make(chan struct{}), make(chan error, 1)
				s := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
					if _, err := r.Peek(len("POST")); err != nil {
						return // the connection to the app before it is known who answers
					}
					close(begun)
					_, err := io.Copy(io.Discard, r)
					result <- err
				})
				w := newWorld(t, s, s)
				w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
				c := w.connect()
				c.send("POST / HTTP/1.1\r\nHost: o\r\nContent-Length: 1000000\r\n%s\r\nabc", more)
				<-begun
				if reset {
					c.SetLinger(0)
				}
				c.Close()
				select {
				case err := <-result:
					assert.Equal(t, reset, errors.Is(err, syscall.ECONNRESET), "%v", err)
				case <-time.After(20 * time.Second):
					t.Error("the server does not notice")
				}
			})
		}
	}
}

func TestFallbackKeepsBytesInOrder(t *testing.T) {
	var mu sync.Mutex
	var seen bytes.Buffer
	w := newWorld(t, echoServer(t, "app", &seen, &mu), "127.0.0.1:1")
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	var all bytes.Buffer
	for i := range 40 {
		more := ""
		if i%2 == 0 {
			more = mine
		}
		body := strings.Repeat(fmt.Sprint(i), i*1000)
		fmt.Fprintf(&all, "PUT /%d HTTP/1.1\r\nHost: o\r\n%sContent-Length: %d\r\n\r\n%s", i, more,
			len(body), body)
	}
	c := w.connect()
	go func() {
		c.Write(all.Bytes())
		c.CloseWrite()
	}()
	_, err := c.rest()
	require.NoError(t, err)
	mu.Lock()
	defer mu.Unlock()
	assert.True(t, bytes.Equal(all.Bytes(), seen.Bytes()))
	assert.EqualValues(t, 20, w.target.Stats().Intercepts["uid-1"].Fallbacks)
}
