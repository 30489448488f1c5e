// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMatchedGoesToTheLaptopAndAllElseToTheApp(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	assert.Equal(t, "app GET /1 0\n", c.get("/1", ""))
	assert.Equal(t, "laptop GET /2 0\n", c.get("/2", mine))
	assert.Equal(t, "app GET /3 0\n", c.get("/3", ""))
	assert.Equal(t, "laptop GET /4 0\n", c.get("/4", mine))
	assert.Equal(t, 1, w.laptop.opened(), "the tunnel is used again")
	assert.Equal(t, 1, w.appDials())
	assert.Equal(t, InterceptStats{Matched: 2, Answered: 2}, w.target.Stats().Intercepts["uid-1"])
}

func TestTwoInterceptsShareAConnection(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{rule(t, "a", "x-dev", "a"), rule(t, "b", "x-dev", "b"),
		rule(t, "b2", "x-dev", "b")}, Kubelet{})
	c := w.connect()
	for range 3 {
		assert.Equal(t, "laptop GET / 0\n", c.get("/", "x-dev: a\r\n"))
		assert.Equal(t, "laptop GET / 0\n", c.get("/", "x-dev: b\r\n"))
		assert.Equal(t, "app GET / 0\n", c.get("/", "x-dev: c\r\n"))
	}
	assert.Equal(t, 2, w.laptop.opened())
	stats := w.target.Stats().Intercepts
	assert.EqualValues(t, 3, stats["a"].Matched)
	assert.EqualValues(t, 3, stats["b"].Matched)
	assert.Zero(t, stats["b2"].Matched, "the first rule has it")
}

func TestRulesAreFollowedAtTheNextRequest(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	c := w.connect()
	assert.Equal(t, "app GET / 0\n", c.get("/", mine), "no rule yet")
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
	away := headerRule(t)
	away.Connected = false
	w.target.SetRules([]Rule{away}, Kubelet{})
	assert.Equal(t, "app GET / 0\n", c.get("/", mine), "the laptop is away")
	assert.Zero(t, w.target.Stats().Intercepts["uid-1"].Fallbacks, "a rule that is not connected is not tried")
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
	w.target.SetRules(nil, Kubelet{})
	assert.Equal(t, "app GET / 0\n", c.get("/", mine))
}

func TestARequestOnItsWayFinishesWhenItsInterceptEnds(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	w := newWorld(t, says(t, "app"), httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-answer
		io.WriteString(w, "laptop")
	}))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("GET / HTTP/1.1\r\nHost: orders\r\n%s\r\n", mine)
	<-arrived
	w.target.SetRules(nil, Kubelet{})
	close(answer)
	_, body := c.response("GET")
	assert.Equal(t, "laptop", body)
	assert.Equal(t, "app GET / 0\n", c.get("/", mine))
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	slow := func(name string) string {
		return httpServer(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(5 * time.Millisecond)
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s", name, r.URL.Path, body)
		})
	}
	w := newWorld(t, slow("app"), slow("laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	var all strings.Builder
	var want []string
	for i := range 60 {
		more, who := "", "app"
		if i%3 == 2 || i%7 == 0 {
			more, who = mine, "laptop"
		}
		switch i % 4 {
		case 1:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: o\r\n%sContent-Length: 4\r\n\r\nbody", i, more)
			want = append(want, fmt.Sprintf("%s /%d body", who, i))
		case 3:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: o\r\n%sTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nbod\r\n1\r\ny\r\n0\r\nT: r\r\n\r\n", i, more)
			want = append(want, fmt.Sprintf("%s /%d body", who, i))
		default:
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: o\r\n%s\r\n", i, more)
			want = append(want, fmt.Sprintf("%s /%d ", who, i))
		}
	}
	for _, piece := range []int{len(all.String()), 1000, 17} {
		t.Run(fmt.Sprintf("in pieces of %d", piece), func(t *testing.T) {
			c := w.connect()
			go func() {
				for p := []byte(all.String()); len(p) > 0; {
					n := min(piece, len(p))
					c.Write(p[:n])
					p = p[n:]
				}
			}()
			for _, want := range want {
				_, body := c.response("GET")
				assert.Equal(t, want, body)
			}
		})
	}
}

func TestAMatchedRequestWaitsForUnansweredOnes(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, s)
	}
	w := newWorld(t, httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		note("app")
	}), httpServer(t, func(http.ResponseWriter, *http.Request) { note("laptop") }))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("GET /1 HTTP/1.1\r\nHost: o\r\n\r\nGET /2 HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
	<-asked
	assert.Never(t, func() bool { return w.laptop.opened() > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	close(answer)
	c.response("GET")
	c.response("GET")
	assert.Equal(t, []string{"app", "laptop"}, order)
}

// echoServer answers each request with a chunked body that holds the request's bytes as they
// arrived, until the client stops.
func echoServer(t *testing.T, name string, seen *bytes.Buffer, mu *sync.Mutex) string {
	return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		var got bytes.Buffer
		tee := bufio.NewReader(io.TeeReader(r, &got))
		for {
			req, err := http.ReadRequest(tee)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			mu.Lock()
			seen.Write(got.Bytes()[:got.Len()-tee.Buffered()])
			mu.Unlock()
			got.Next(got.Len() - tee.Buffered())
			fmt.Fprintf(c, "HTTP/1.1 200 Fine by %s\r\nx-OdD-case:  kept \r\nX-Odd-Case:\ttwice\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n"+
				"00a;ext=\"q\"\r\n%010d\r\n", name, len(body))
			for len(body) > 0 {
				n := min(len(body), 70_000)
				fmt.Fprintf(c, "%X\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			io.WriteString(c, "0\r\nt:  trailer\r\nU: u\r\n\r\n")
		}
	})
}

func TestBytesPassUnalteredInBothDirections(t *testing.T) {
	for _, matched := range []bool{false, true} {
		t.Run(fmt.Sprintf("matched %v", matched), func(t *testing.T) {
			var mu sync.Mutex
			var seen bytes.Buffer
			direct := echoServer(t, "server", new(bytes.Buffer), &mu)
			server := echoServer(t, "server", &seen, &mu)
			w := newWorld(t, server, server)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			more := ""
			if matched {
				more = "x-DEV:me\t\r\n"
			}
			big := make([]byte, 3<<20)
			rand.Read(big)
			var all bytes.Buffer
			fmt.Fprintf(&all, "GET /a%%20b?q=%%2F#f HTTP/1.1\r\nhOsT:  x \r\nA:1\r\nB: \r\na: 2\r\n%s\r\n", more)
			fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:%d\r\n%s\r\n%s", len(big),
				more, big)
			fmt.Fprintf(&all, "PUT http://h/p HTTP/1.1\r\nHost: x\r\n%stransfer-Encoding: \t CHUNKED\r\n\r\n5\r\nhello\r\n%x;a;b=c\r\n%s\r\n"+
				"0\r\ntr: ail\r\n\r\n", more, len(big), big)
			for i := range 100 {
				fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: x\r\n%s\r\n", i, more)
			}
			collect := func(addr string) []byte {
				c := connect(t, addr)
				c.SetDeadline(time.Now().Add(30 * time.Second))
				go func() {
					c.Write(all.Bytes())
					c.CloseWrite()
				}()
				got, err := io.ReadAll(c)
				require.NoError(t, err)
				return got
			}
			want := collect(direct)
			got := collect(w.addr)
			assert.True(t, bytes.Equal(want, got), "what the client gets: %d bytes, want %d", len(got),
				len(want))
			mu.Lock()
			defer mu.Unlock()
			assert.True(t, bytes.Equal(all.Bytes(), seen.Bytes()),
				"what the server gets: %d bytes, want %d", seen.Len(), all.Len())
			if matched {
				assert.EqualValues(t, 103, w.target.Stats().Intercepts["uid-1"].Matched)
			}
		})
	}
}

func TestBodylessResponsesEndWhereTheyShould(t *testing.T) {
	server := func(name string) string {
		return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				switch req.URL.Path {
				case "/head":
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
				case "/204":
					io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				case "/304":
					io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n")
				case "/304c":
					io.WriteString(c, "HTTP/1.1 304\r\nTransfer-Encoding: chunked\r\n\r\n")
				case "/103":
					io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 \r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")
				default:
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
				}
			}
		})
	}
	w := newWorld(t, server("app"), server("laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for _, more := range []string{"", mine} {
		c := w.connect()
		for _, path := range []string{"/head", "/204", "/304", "/304c", "/103"} {
			method := "GET"
			if path == "/head" {
				method = "HEAD"
			}
			c.send("%s %s HTTP/1.1\r\nHost: o\r\n%s\r\n", method, path, more)
			resp, body := c.response(method)
			for resp.StatusCode < 200 {
				resp, body = c.response(method)
			}
			if path == "/103" {
				assert.Equal(t, "yes", body)
			} else {
				assert.Empty(t, body)
			}
			assert.Equal(t, "laptop", c.get("/", mine))
			assert.Equal(t, "app", c.get("/", ""))
		}
	}
}

func TestExpectContinueIsNotHeldUp(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for _, more := range []string{"", mine} {
		c := w.connect()
		for range 2 {
			c.send("POST /e HTTP/1.1\r\nHost: o\r\nExpect: 100-continue\r\nContent-Length: 5\r\n%s\r\n", more)
			line, err := c.r.ReadString('\n')
			require.NoError(t, err)
			assert.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
			c.r.ReadString('\n')
			c.send("hello")
			_, body := c.response("POST")
			assert.Contains(t, body, "POST /e 5\n")
		}
	}
}

func TestAnExpectationThatIsRefusedEndsTheParsing(t *testing.T) {
	refuse := func(name string) string {
		return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 417 No\r\nX: %s %s\r\nContent-Length: 0\r\n\r\n", name, req.URL.Path)
			}
		})
	}
	w := newWorld(t, refuse("app"), refuse("laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})

	c := w.connect()
	c.send("POST /1 HTTP/1.1\r\nHost: o\r\nExpect: 100-continue\r\nContent-Length: 400\r\n\r\n")
	resp, _ := c.response("POST")
	assert.Equal(t, "app /1", resp.Header.Get("X"))
	// This app takes what follows for a request, another might take it for the body. It is the
	// app's in any case.
	c.send("GET /2 HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
	resp, _ = c.response("GET")
	assert.Equal(t, "app /2", resp.Header.Get("X"))

	c = w.connect()
	c.send("POST /1 HTTP/1.1\r\nHost: o\r\nExpect: 100-continue\r\nContent-Length: 400\r\n%s\r\n", mine)
	resp, _ = c.response("POST")
	assert.Equal(t, "laptop /1", resp.Header.Get("X"))
	_, err := c.r.ReadByte()
	assert.Equal(t, io.EOF, err, "the connection is closed, since nobody can say what follows")
}

func TestHTTP10(t *testing.T) {
	server := func(name string) string {
		return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				if req.Header.Get("Connection") == "keep-alive" {
					fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
					continue
				}
				fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s to the end", name)
				return
			}
		})
	}
	w := newWorld(t, server("app"), server("laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for who, more := range map[string]string{"app": "", "laptop": mine} {
		t.Run(who+" answers until the close", func(t *testing.T) {
			c := w.connect()
			c.send("GET / HTTP/1.0\r\n%s\r\n", more)
			_, body := c.response("GET")
			assert.Equal(t, who+" to the end", body)
		})
		t.Run(who+" keeps the connection", func(t *testing.T) {
			c := w.connect()
			for range 3 {
				c.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n%s\r\n", more)
				_, body := c.response("GET")
				assert.Equal(t, who, body)
				c.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
				_, body = c.response("GET")
				assert.Equal(t, "app", body)
			}
		})
	}
}

func TestConnectionCloseIsHonoured(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for who, more := range map[string]string{"app": "", "laptop": mine} {
		c := w.connect()
		c.send("GET / HTTP/1.1\r\nHost: o\r\nConnection: close\r\n%s\r\n", more)
		_, body := c.response("GET")
		assert.Equal(t, who+" GET / 0\n", body)
		_, err := c.r.ReadByte()
		assert.Equal(t, io.EOF, err)
	}
}

func TestRealClientsManyConnectionsAtOnce(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	// all at once may take a slow machine some time, and none may go to the app instead
	w.proxy.cfg.OpenTimeout = time.Minute
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	const conns, each = 32, 60
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns}}
	t.Cleanup(client.CloseIdleConnections)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			for j := range each {
				size := (i*j*997 + j) % 200_000
				req, _ := http.NewRequest("POST", fmt.Sprintf("http://%s/%d/%d", w.addr, i, j),
					bytes.NewReader(make([]byte, size)))
				who := "app"
				if (i+j)%3 == 0 {
					who = "laptop"
					req.Header.Set("X-Dev", "me")
				}
				if j%5 == 0 {
					req.ContentLength = -1
				}
				if j%11 == 0 {
					req.Header.Set("Expect", "100-continue")
				}
				resp, err := client.Do(req)
				if !assert.NoError(t, err) {
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				assert.NoError(t, err)
				assert.Equal(t, fmt.Sprintf("%s POST /%d/%d %d\n", who, i, j, size), string(body))
			}
		})
	}
	wg.Wait()
	assert.Zero(t, w.target.Stats().Intercepts["uid-1"].Fallbacks)
	assert.EqualValues(t, conns*each/3, w.target.Stats().Intercepts["uid-1"].Matched)
}
