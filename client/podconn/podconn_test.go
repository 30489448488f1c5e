// SPDX-License-Identifier: Apache-2.0

package podconn_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	k8sportforward "k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"sidestep.dev/sidestep/client/podconn"
)

// apiServer forwards ports like an API server and a kubelet, to a port of this machine.
type apiServer struct {
	*httptest.Server
	websockets bool
	forbidden  bool
	mu         sync.Mutex
	methods    []string
	sessions   []httpstream.Connection
	backend    string
}

func newAPIServer(t testing.TB, websockets bool, backend string) *apiServer {
	s := &apiServer{websockets: websockets, backend: backend}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.cut)
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: s.URL} }

// cut breaks off all connections that are being forwarded.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		_ = session.Close()
	}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.methods = append(s.methods, r.Method)
	s.mu.Unlock()
	streams := make(chan httpstream.Stream, 2)
	accept := func(stream httpstream.Stream, _ <-chan struct{}) error { streams <- stream; return nil }
	var session httpstream.Connection
	switch {
	case s.forbidden:
		status := apierrors.NewForbidden(corev1.Resource("pods/portforward"), "manager-0",
			errors.New("not for you")).ErrStatus
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":%q,"reason":"Forbidden","code":403}`, status.Message)
		return
	case r.Method == http.MethodGet && s.websockets:
		upgrader := websocket.Upgrader{Subprotocols: []string{"SPDY/3.1+portforward.k8s.io"}}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		session, err = spdy.NewServerConnection(k8sportforward.NewTunnelingConnection("server", conn), accept)
		if err != nil {
			return
		}
	case r.Method == http.MethodPost:
		if _, err := httpstream.Handshake(r, w,
			[]string{k8sportforward.PortForwardProtocolV1Name}); err != nil {
			return
		}
		if session = spdy.NewResponseUpgrader().UpgradeResponse(w, r, accept); session == nil {
			return
		}
	default:
		http.Error(w, "no WebSockets here", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.sessions = append(s.sessions, session)
	s.mu.Unlock()
	go s.forward(streams, session)
	<-session.CloseChan()
}

func (s *apiServer) forward(streams chan httpstream.Stream, session httpstream.Connection) {
	var errs, data httpstream.Stream
	for errs == nil || data == nil {
		stream := <-streams
		if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
			errs = stream
		} else {
			data = stream
		}
	}
	defer session.Close()
	backend, err := net.Dial("tcp", s.backend)
	if err != nil {
		fmt.Fprintf(errs, "failed to connect to localhost:%s inside namespace: %v",
			data.Headers().Get(corev1.PortHeader), err)
		_ = errs.Close()
		_ = data.Close()
		time.Sleep(50 * time.Millisecond) // the kubelet also closes only a moment later
		return
	}
	defer backend.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(data, backend)
		_ = data.Close()
	}()
	_, _ = io.Copy(backend, data)
	_ = backend.(*net.TCPConn).CloseWrite()
	<-back
	_ = errs.Close()
}

// echo is a server that sends back what it gets, after the client's end of file if late.
func echo(t testing.TB, late bool) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if !late {
					_, _ = io.Copy(c, c)
					return
				}
				all, _ := io.ReadAll(c)
				_, _ = c.Write(all)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, s *apiServer) *podconn.Conn {
	conn, err := podconn.Dial(t.Context(), s.config(), "sidestep", "manager-0", 8443)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestDial(t *testing.T) {
	for name, websockets := range map[string]bool{"over WebSockets": true,
		"over SPDY where WebSockets are refused": false} {
		t.Run(name, func(t *testing.T) {
			t.Run("a megabyte comes back through a half-closed connection", func(t *testing.T) {
				s := newAPIServer(t, websockets, echo(t, true))
				conn := dial(t, s)
				sent := make([]byte, 1<<20)
				_, _ = rand.Read(sent)
				for part := range slices.Chunk(sent, 16<<10) {
					_, err := conn.Write(part)
					require.NoError(t, err)
				}
				require.NoError(t, conn.CloseWrite())
				got, err := io.ReadAll(conn)
				require.NoError(t, err)
				assert.True(t, bytes.Equal(sent, got), "%d bytes came back", len(got))
			})
			t.Run("a port that nothing listens on is named by Read", func(t *testing.T) {
				s := newAPIServer(t, websockets, "127.0.0.1:1")
				_, err := dial(t, s).Read(make([]byte, 1))
				assert.ErrorContains(t, err, "failed to connect to localhost:8443")
			})
			t.Run("a connection that breaks off is lost for readers and writers", func(t *testing.T) {
				s := newAPIServer(t, websockets, echo(t, false))
				conn := dial(t, s)
				_, err := conn.Write([]byte("x"))
				require.NoError(t, err)
				_, err = io.ReadFull(conn, make([]byte, 1))
				require.NoError(t, err)
				s.cut()
				_, err = conn.Read(make([]byte, 1))
				assert.Error(t, err)
				assert.Eventually(t, func() bool {
					_,
						err := conn.Write([]byte("x"))
					return err != nil
				}, 5*time.Second, time.Millisecond)
			})
			t.Run("a deadline ends a Read", func(t *testing.T) {
				conn := dial(t, newAPIServer(t, websockets, echo(t, false)))
				require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
				_, err := conn.Read(make([]byte, 1))
				assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			})
			t.Run("Close ends a Read of another goroutine", func(t *testing.T) {
				conn := dial(t, newAPIServer(t, websockets, echo(t, false)))
				read := make(chan error)
				go func() { _, err := conn.Read(make([]byte, 1)); read <- err }()
				require.NoError(t, conn.Close())
				assert.ErrorIs(t, <-read, net.ErrClosed)
			})
		})
	}
}

func TestDialFailures(t *testing.T) {
	t.Run("a missing right is an error of the API server", func(t *testing.T) {
		s := newAPIServer(t, true, "")
		s.forbidden = true
		_, err := podconn.Dial(t.Context(), s.config(), "sidestep", "manager-0", 8443)
		assert.True(t, apierrors.IsForbidden(err), "%v", err)
		assert.Equal(t, []string{"GET", "POST"}, s.methods)
	})
	t.Run("no API server is a refused connection", func(t *testing.T) {
		_, err := podconn.Dial(t.Context(), &rest.Config{Host: "http://127.0.0.1:1"}, "sidestep",
			"manager-0", 8443)
		assert.ErrorContains(t, err, "connection refused")
	})
	t.Run("an API server that does not answer is given up when the context ends", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = podconn.Dial(ctx, &rest.Config{Host: "http://" + l.Addr().String()}, "sidestep",
			"manager-0", 8443)
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		assert.True(t, timeout.Timeout())
		assert.True(t, strings.HasPrefix(err.Error(), "port-forward to pod sidestep/manager-0: "), err.Error())
	})
}
