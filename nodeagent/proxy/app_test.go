// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// closing is an app that closes each connection when told by end, and counts what it served before.
func closing(t *testing.T, end <-chan struct{}, reset bool) string {
	return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		over := make(chan struct{})
		go func() {
			defer close(over)
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napp")
			}
		}()
		select {
		case <-end:
			if reset {
				c.SetLinger(0)
			}
		case <-over:
		}
		c.Close()
		<-over
	})
}

func TestAnIdleConnectionThatTheAppCloses(t *testing.T) {
	for _, reset := range []bool{false, true} {
		want := error(io.EOF)
		if reset {
			want = syscall.ECONNRESET
		}
		t.Run("is closed for the client that sent nothing", func(t *testing.T) {
			end := make(chan struct{})
			w := newWorld(t, closing(t, end, reset), says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			require.Eventually(t, func() bool { return w.appDials() == 1 }, time.Second, time.Millisecond)
			close(end)
			_, err := c.r.ReadByte()
			assert.ErrorIs(t, err, want)
		})
		t.Run("is closed for the client that the app had served", func(t *testing.T) {
			end := make(chan struct{})
			w := newWorld(t, closing(t, end, reset), says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			c.get("/", mine)
			assert.Equal(t, "app", c.get("/", ""))
			close(end)
			_, err := c.r.ReadByte()
			assert.ErrorIs(t, err, want)
		})
		t.Run("is kept for the client that the laptop serves", func(t *testing.T) {
			end := make(chan struct{})
			w := newWorld(t, closing(t, end, reset), says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			assert.Equal(t, "app", c.get("/", ""))
			assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
			close(end)
			for range 20 {
				assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
			}
			w.setApp(says(t, "app"))
			assert.Equal(t, "app GET / 0\n", c.get("/", ""), "over a new connection")
			assert.Equal(t, 2, w.appDials())
		})
	}
}

func TestAnIdleAppThatSpeaksDoesNotDisturbTheLaptop(t *testing.T) {
	speak, left := make(chan struct{}), make(chan struct{})
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		<-speak
		io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		_, _ = r.ReadByte()
		close(left)
	})
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
	w.setApp(says(t, "app"))
	close(speak)
	// a request that crosses the app's word on its way would be answered by it, as without an
	// intercept
	<-left
	assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
	assert.Equal(t, "app GET / 0\n", c.get("/", ""))
}

func TestAnAppThatIsDown(t *testing.T) {
	t.Run("without rules the client is reset at once", func(t *testing.T) {
		w := newWorld(t, "", says(t, "laptop"))
		c, err := net.Dial("tcp", w.addr) // which may fail already
		if err == nil {
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
		}
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("the laptop still serves, all else is reset", func(t *testing.T) {
		w := newWorld(t, "", says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
		assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
		c.send("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
		_, err := c.r.ReadByte()
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("a client that says nothing is reset after a while", func(t *testing.T) {
		w := newWorld(t, "", says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		_, err := c.r.ReadByte()
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("the laptop that cannot take it is reset too", func(t *testing.T) {
		w := newWorld(t, "", "127.0.0.1:1")
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
		_, err := c.r.ReadByte()
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("it is found again when it comes back", func(t *testing.T) {
		w := newWorld(t, "", says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "laptop GET / 0\n", c.get("/", mine))
		w.setApp(says(t, "app"))
		assert.Equal(t, "app GET / 0\n", c.get("/", ""))
	})
}

func TestAnAppThatEndsInAResponse(t *testing.T) {
	const half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
	for _, say := range []string{"", "HTTP/1.1 20", half,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf"} {
		for _, reset := range []bool{false, true} {
			said := make(chan struct{})
			app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
				http.ReadRequest(r)
				io.WriteString(c, say)
				<-said
				if reset {
					c.SetLinger(0)
				}
			})
			w := newWorld(t, app, says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			c.send("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
			time.Sleep(10 * time.Millisecond)
			close(said)
			got, err := c.rest()
			if reset {
				assert.ErrorIs(t, err, syscall.ECONNRESET)
			} else {
				assert.NoError(t, err)
				assert.Equal(t, say, got)
			}
		}
	}
}

func TestAnEarlyAnswerOfTheApp(t *testing.T) {
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		io.Copy(c, r)
	})
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("POST / HTTP/1.1\r\nHost: o\r\nContent-Length: 10\r\n\r\n12345")
	_, body := c.response("POST")
	assert.Equal(t, "early", body)
	// Whether the app takes what follows for the rest of the body only the app knows.
	next := "67890GET / HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n"
	c.send("%s", next)
	p := make([]byte, 5+len(next))
	_, err := io.ReadFull(c.r, p)
	require.NoError(t, err)
	assert.Equal(t, "12345"+next, string(p))
	assert.Zero(t, w.laptop.opened())
}

func TestBodiesAndResponsesStreamAtTheSameTime(t *testing.T) {
	echo := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		w.WriteHeader(200)
		c.Flush()
		p := make([]byte, 100)
		for {
			n, err := r.Body.Read(p)
			w.Write(p[:n])
			c.Flush()
			if err != nil {
				return
			}
		}
	})
	w := newWorld(t, echo, echo)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for _, more := range []string{"", mine} {
		c := w.connect()
		for range 2 {
			c.send("POST / HTTP/1.1\r\nHost: o\r\nTransfer-Encoding: chunked\r\n%s\r\n", more)
			resp, err := http.ReadResponse(c.r, nil)
			require.NoError(t, err)
			for range 5 {
				c.send("4\r\nping\r\n")
				p := make([]byte, 4)
				_, err = io.ReadFull(resp.Body, p)
				require.NoError(t, err)
				assert.Equal(t, "ping", string(p))
			}
			c.send("0\r\n\r\n")
			rest, err := io.ReadAll(resp.Body)
			assert.NoError(t, err)
			assert.Empty(t, rest)
		}
	}
}
