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
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/http1/corpus"
)

// switching is a server that answers an upgrade or a CONNECT and then echoes, with its name in
// front.
func switching(t *testing.T, name string) string {
	return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			switch {
			case req.URL.Path == "/refused":
				fmt.Fprintf(c, "HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
				continue
			case req.Method == "CONNECT":
				io.WriteString(c, "HTTP/1.1 200 Connected\r\n\r\n")
			case req.Header.Get("Upgrade") != "":
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			default:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
				continue
			}
			io.WriteString(c, name+":") // the server may speak first
			io.Copy(c, r)
			c.CloseWrite()
			return
		}
	})
}

func TestSwitchedConnections(t *testing.T) {
	for _, head := range []string{
		"GET /ws HTTP/1.1\r\nHost: o\r\nConnection: Upgrade\r\nUpgrade: echo\r\n%s\r\n",
		"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n%s\r\n",
	} {
		for who, more := range map[string]string{"app": "", "laptop": mine} {
			t.Run(strings.Fields(head)[0]+" by "+who, func(t *testing.T) {
				w := newWorld(t, switching(t, "app"), switching(t, "laptop"))
				w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
				c := w.connect()
				assert.Equal(t, "app", c.get("/", ""))
				assert.Equal(t, "laptop", c.get("/", mine))
				c.send(head, more)
				resp, err := http.ReadResponse(c.r, &http.Request{Method: strings.Fields(head)[0]})
				require.NoError(t, err)
				assert.Contains(t, []int{101, 200}, resp.StatusCode)
				big := make([]byte, 2<<20)
				rand.Read(big)
				go func() {
					// What looks like a request is none any more.
					c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n", mine)
					c.Write(big)
					c.CloseWrite()
				}()
				got, err := c.rest()
				require.NoError(t, err)
				assert.True(t, got == fmt.Sprintf("%s:GET / HTTP/1.1\r\nHost: o\r\n%s\r\n%s", who, mine,
					big), "%d bytes", len(got))
			})
		}
	}
}

func TestARefusedUpgradeLeavesHTTP(t *testing.T) {
	w := newWorld(t, switching(t, "app"), switching(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for who, more := range map[string]string{"app": "", "laptop": mine} {
		c := w.connect()
		const ask = "GET /refused HTTP/1.1\r\nHost: o\r\nConnection: Upgrade\r\nUpgrade: echo\r\n%s\r\n"
		c.send(ask+"GET /next HTTP/1.1\r\nHost: o\r\n%s\r\n", more, mine)
		_, body := c.response("GET")
		assert.Equal(t, who, body)
		_, body = c.response("GET")
		assert.Equal(t, "laptop", body, "what came behind the refused upgrade is HTTP")
		assert.Equal(t, "app", c.get("/", ""))
	}
}

func TestAmbiguousConnectionsAreTheApps(t *testing.T) {
	hidden := "GET /hidden HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n"
	for name, first := range corpus.Ambiguous {
		t.Run(name, func(t *testing.T) {
			got := make(chan string, 10)
			app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
				b, _ := io.ReadAll(r)
				got <- string(b)
				io.WriteString(c, "whatever the app says")
			})
			w := newWorld(t, app, says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			for _, marked := range []string{first,
				strings.Replace(first, "Host: o\r\n", "Host: o\r\n"+mine, 1)} {
				for _, piece := range []int{1 << 20, 1} {
					if piece == 1 && marked != first &&
						(strings.HasPrefix(name, "chunk ") || strings.HasPrefix(name, "trailer ")) {
						continue // its head is matched, and on its way before the doubt arises
					}
					c := w.connect()
					all := marked + hidden
					if piece == 1 && len(all) > 1000 {
						piece = 5000
					}
					go func() {
						for p := []byte(all); len(p) > 0; {
							n := min(piece, len(p))
							c.Write(p[:n])
							p = p[n:]
						}
						c.CloseWrite()
					}()
					answer, err := c.rest()
					assert.NoError(t, err)
					assert.Equal(t, "whatever the app says", answer)
					assert.Equal(t, all, <-got)
				}
			}
			assert.Zero(t, w.laptop.opened())
		})
	}
}

func TestADoubtInABodyThatIsUnderWayToTheLaptopEndsTheConnection(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.send("POST / HTTP/1.1\r\nHost: o\r\n%sTransfer-Encoding: chunked\r\n\r\n", mine)
	require.Eventually(t, func() bool { return w.laptop.opened() == 1 }, 30*time.Second, time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	c.send("xyz\r\n")
	_, err := c.rest()
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAnAppsResponseThatCannotBeFramedMakesTheConnectionTheApps(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for name, say := range map[string]string{
		"both lengths":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
		"bare LF":         "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"no HTTP":         "ICY 200 OK\r\n\r\nok",
		"bad chunk":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n0\r\n\r\n",
		"204 with a body": "HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok",
		"until the close": "HTTP/1.1 200 OK\r\n\r\nok",
		"more than asked": ok + ok,
		"closing":         "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"huge head":       "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
				http.ReadRequest(r)
				io.WriteString(c, say)
				b, _ := io.ReadAll(r)
				c.Write(b)
			})
			w := newWorld(t, app, says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := w.connect()
			c.send("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
			p := make([]byte, len(say))
			_, err := io.ReadFull(c.r, p)
			require.NoError(t, err)
			assert.Equal(t, say, string(p))
			next := "GET /next HTTP/1.1\r\nHost: o\r\n" + mine + "\r\n"
			c.send("%s", next)
			c.CloseWrite()
			got, err := c.rest()
			assert.NoError(t, err)
			assert.Equal(t, next, got)
			assert.Zero(t, w.laptop.opened())
		})
	}
}

func TestTheAppMaySpeakFirst(t *testing.T) {
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		io.WriteString(c, "220 mail\r\n")
		line, _ := r.ReadString('\n')
		io.WriteString(c, "got "+line)
		io.Copy(c, r)
	})
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	line, err := c.r.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "220 mail\r\n", line)
	c.send("GET / HTTP/1.1\r\n") // even if it looks like a request
	line, _ = c.r.ReadString('\n')
	assert.Equal(t, "got GET / HTTP/1.1\r\n", line)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	go func() {
		c.Write(big)
		c.CloseWrite()
	}()
	got, err := c.rest()
	assert.NoError(t, err)
	assert.True(t, got == string(big), "%d bytes", len(got))
}

func TestProtocolsWithoutLinesAreNotHeldUp(t *testing.T) {
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { io.Copy(c, r) })
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for _, say := range []string{"HELLO", "\x16\x03\x01", "get x", "{}", "\r"} {
		c := w.connect()
		c.send("%s", say)
		p := make([]byte, len(say))
		_, err := io.ReadFull(c.r, p)
		require.NoError(t, err)
		assert.Equal(t, say, string(p))
	}
}

func TestHalfClosesAndResetsOfRawConnections(t *testing.T) {
	begun, result := make(chan struct{}), make(chan error, 1)
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		b, err := r.ReadByte()
		switch b {
		case 1: // the app ends first, and still listens
			c.CloseWrite()
			var rest []byte
			rest, err = io.ReadAll(r)
			if err == nil && len(rest) != 5 {
				err = io.ErrUnexpectedEOF
			}
		case 2:
			c.SetLinger(0)
		case 3:
			close(begun)
			_, err = r.ReadByte()
		}
		result <- err
	})
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})

	c := w.connect()
	c.send("\x01")
	_, err := c.r.ReadByte()
	assert.Equal(t, io.EOF, err)
	c.send("hello")
	c.CloseWrite()
	assert.NoError(t, <-result)

	c = w.connect()
	c.send("\x02")
	_, err = c.r.ReadByte()
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	<-result

	c = w.connect()
	c.send("\x03")
	<-begun
	c.SetLinger(0)
	c.Close()
	assert.ErrorIs(t, <-result, syscall.ECONNRESET)
}

func TestSlowReadersHoldWritersBack(t *testing.T) {
	var sent int
	stopped := make(chan int, 1)
	app := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		c.SetWriteBuffer(64 << 10)
		p := make([]byte, 64<<10)
		for {
			c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			n, err := c.Write(p)
			sent += n
			if err != nil {
				stopped <- sent
				return
			}
		}
	})
	w := newWorld(t, app, says(t, "laptop"))
	c := w.connect()
	c.send("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
	assert.Less(t, <-stopped, 40<<20)
}
