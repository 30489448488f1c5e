// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/divert"
)

// ending gives a world whose connections are wound up by end.
func ending(t *testing.T, app http.HandlerFunc, local string) (w *world, end func()) {
	s := &http.Server{Handler: app, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	w = newWorld(t, l.Addr().String(), local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	ctx, cancel := context.WithCancelCause(context.Background())
	w.addr = serveOn(t, func(_ context.Context, c *net.TCPConn) { w.proxy.Serve(ctx, c, w.target) })
	end = func() { cancel(divert.ErrDrained) }
	t.Cleanup(end)
	return w, end
}

func sayApp(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "app") }

func TestIdleConnectionsEndInOrder(t *testing.T) {
	for name, use := range map[string]func(c *rawClient){
		"after an answer of the app": func(c *rawClient) { require.Equal(t, "app", c.get("/", "")) },
		"after an answer of the laptop": func(c *rawClient) {
			require.Contains(t, c.get("/", mine),
				"laptop")
		},
		"of a client that has said nothing": func(*rawClient) {},
	} {
		t.Run(name, func(t *testing.T) {
			w, end := ending(t, sayApp, says(t, "laptop"))
			c := w.connect()
			use(c)
			require.Eventually(t, func() bool { return w.appDials() == 1 }, 5*time.Second, time.Millisecond)
			end()
			rest, err := c.rest()
			assert.NoError(t, err, "a FIN, no RST")
			assert.Empty(t, rest)
		})
	}
}

func TestConnectionsEndInOrderAfterTheAnswerThatIsOwed(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	w, end := ending(t, func(rw http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		io.WriteString(rw, "late")
	}, says(t, "laptop"))
	c := w.connect()
	c.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
	<-asked
	end()
	time.AfterFunc(100*time.Millisecond, func() { close(answer) })
	_, body := c.response("GET")
	assert.Equal(t, "late", body)
	rest, err := c.rest()
	assert.NoError(t, err)
	assert.Empty(t, rest)
}

func TestConnectionsThatDoNotEndAreReset(t *testing.T) {
	answer := make(chan struct{})
	defer close(answer)
	w, end := ending(t, func(http.ResponseWriter, *http.Request) { <-answer }, says(t, "laptop"))
	waits := w.connect()
	waits.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
	half := w.connect()
	half.send("GET / HTTP/1.1\r\nHo")
	require.Eventually(t, func() bool { return w.appDials() == 2 }, 5*time.Second, time.Millisecond)
	end()
	for _, c := range []*rawClient{waits, half} {
		_, err := c.rest()
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

// Clients that ask again as soon as they are answered get all answers but, perhaps, that to a
// request which crosses with the end.
func TestBusyConnectionsEndBetweenRequests(t *testing.T) {
	w, end := ending(t, sayApp, says(t, "laptop"))
	var answered, ended, crossed, reset atomic.Int64
	var all sync.WaitGroup
	for range 32 {
		c := w.connect()
		all.Go(func() {
			for {
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"); err != nil {
					crossed.Add(1)
					return
				}
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					if errors.Is(err, syscall.ECONNRESET) {
						reset.Add(1)
					}
					crossed.Add(1)
					return
				}
				body, err := io.ReadAll(resp.Body)
				assert.NoError(t, err, "an answer is whole")
				assert.Equal(t, "app", string(body))
				answered.Add(1)
				// A client with a pool sees the end of a connection that it does not use.
				c.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := c.r.Peek(1); err == io.EOF {
					ended.Add(1)
					return
				}
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
			}
		})
	}
	require.Eventually(t, func() bool { return answered.Load() > 320 }, 20*time.Second, time.Millisecond)
	end()
	all.Wait()
	t.Logf("%d answers, %d connections ended between requests, %d requests crossed with the end, %d of them saw a reset",
		answered.Load(), ended.Load(), crossed.Load(), reset.Load())
	assert.Zero(t, reset.Load())
	assert.Positive(t, ended.Load())
}

func TestHTTP2ConnectionsEndByGoAway(t *testing.T) {
	for name, matched := range map[string]bool{"of the app alone": false, "of app and laptop": true} {
		t.Run(name, func(t *testing.T) {
			answer := make(chan struct{})
			w, end := ending(t, func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/late" {
					<-answer
				}
				sayApp(rw, r)
			}, h2Says(t, "laptop"))
			c := w.connect()
			f := http2.NewFramer(c, c.r)
			_, err := io.WriteString(c, http2.ClientPreface)
			require.NoError(t, err)
			require.NoError(t, f.WriteSettings())
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			ask := func(id uint32, path string, more ...hpack.HeaderField) {
				block.Reset()
				for _, h := range append([]hpack.HeaderField{{Name: ":method", Value: "GET"},
					{Name: ":scheme", Value: "http"},
					{Name: ":authority", Value: "orders"}, {Name: ":path", Value: path}}, more...) {
					require.NoError(t, e.WriteField(h))
				}
				require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id,
					BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
			}
			ended := func(id uint32) { awaitEnd(t, f, id) }
			ask(1, "/")
			ended(1)
			if matched {
				ask(3, "/", hpack.HeaderField{Name: "x-dev", Value: "me"})
				ended(3)
			}
			ask(5, "/late")
			require.NoError(t, f.WritePing(false, [8]byte{1})) // its answer says that the app has the request
			awaitPong(t, f)
			end()
			away := awaitGoAway(t, f)
			assert.EqualValues(t, 1<<31-1, away.LastStreamID, "a notice")
			assert.Equal(t, http2.ErrCodeNo, away.ErrCode)
			ask(7, "/") // has crossed with it
			ended(7)
			close(answer)
			ended(5)
			away = awaitGoAway(t, f)
			assert.EqualValues(t, 7, away.LastStreamID)
			assert.Equal(t, http2.ErrCodeNo, away.ErrCode)
			rest, err := c.rest()
			assert.NoError(t, err, "a FIN, no RST")
			assert.Empty(t, rest)
		})
	}
}

// h2Says is a server that answers with its name by HTTP/2.
func h2Says(t *testing.T, name string) string {
	s := &http.Server{Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, name) })}
	s.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// await reads frames up to one that is wanted.
func await(t *testing.T, f *http2.Framer, wanted func(http2.Frame) bool) http2.Frame {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		require.NoError(t, err)
		if s, ok := frame.(*http2.SettingsFrame); ok && !s.IsAck() {
			require.NoError(t, f.WriteSettingsAck())
		}
		if wanted(frame) {
			return frame
		}
	}
}

func awaitEnd(t *testing.T, f *http2.Framer, id uint32) {
	t.Helper()
	await(t, f, func(frame http2.Frame) bool {
		h := frame.Header()
		return h.StreamID == id && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) &&
			h.Flags.Has(http2.FlagDataEndStream)
	})
}

func awaitPong(t *testing.T, f *http2.Framer) {
	t.Helper()
	await(t, f, func(frame http2.Frame) bool {
		return frame.Header().Type == http2.FramePing && frame.Header().Flags.Has(http2.FlagPingAck)
	})
}

func awaitGoAway(t *testing.T, f *http2.Framer) *http2.GoAwayFrame {
	t.Helper()
	return await(t, f, func(frame http2.Frame) bool { return frame.Header().Type == http2.FrameGoAway }).(*http2.GoAwayFrame)
}
