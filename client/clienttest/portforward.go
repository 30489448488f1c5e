// SPDX-License-Identifier: Apache-2.0

package clienttest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// forwards is the port-forwarding of the API server and its kubelets, and the API server's pod
// proxy. Pods are addresses of this machine.
type forwards struct {
	mu       sync.Mutex
	pods     map[string]string // namespace/name to address
	sessions map[io.Closer]struct{}
	stalled  chan struct{} // closed: nothing passes any more
}

func newForwards() *forwards {
	return &forwards{pods: map[string]string{}, sessions: map[io.Closer]struct{}{},
		stalled: make(chan struct{})}
}

func (f *forwards) set(namespace, pod, addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[namespace+"/"+pod] = addr
}

func (f *forwards) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for session := range f.sessions {
		_ = session.Close()
	}
}

// stall makes the present sessions hang. New ones work.
func (f *forwards) stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.stalled)
	f.stalled = make(chan struct{})
}

func (f *forwards) serve(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	streams := make(chan httpstream.Stream, 2)
	upgrader := websocket.Upgrader{Subprotocols: []string{"SPDY/3.1+portforward.k8s.io"}}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	session, err := spdy.NewServerConnection(portforward.NewTunnelingConnection("server", conn),
		func(stream httpstream.Stream, _ <-chan struct{}) error { streams <- stream; return nil })
	if err != nil {
		return
	}
	addr, stalled, remove := f.add(namespace, pod, session)
	defer remove()
	go join(session, streams, addr, stalled)
	<-session.CloseChan()
}

// add registers a session, and returns where it leads.
func (f *forwards) add(namespace, pod string, session io.Closer) (addr string, stalled <-chan struct{},
	remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions[session] = struct{}{}
	return f.pods[namespace+"/"+pod], f.stalled, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sessions, session)
	}
}

// upgrade answers for the manager's HTTP port, and passes what follows to its gRPC port.
func (f *forwards) upgrade(w http.ResponseWriter, r *http.Request, namespace, podAndPort string) {
	pod, _, _ := strings.Cut(podAndPort, ":")
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	addr, stalled, remove := f.add(namespace, pod, conn)
	defer remove()
	backend, err := net.Dial("tcp", addr)
	if err != nil {
		fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nerror trying to reach service: %v", err)
		return
	}
	defer backend.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		r.Header.Get("Upgrade"))
	ended := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(&gate{to, stalled}, from)
		ended <- struct{}{}
	}
	go pass(backend, conn)
	go pass(conn, backend)
	<-ended
}

func join(session httpstream.Connection, streams <-chan httpstream.Stream, addr string,
	stalled <-chan struct{}) {
	defer session.Close()
	var data, errs httpstream.Stream
	for data == nil || errs == nil {
		select {
		case stream := <-streams:
			if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				errs = stream
			} else {
				data = stream
			}
		case <-session.CloseChan():
			return
		}
	}
	backend, err := net.Dial("tcp", addr)
	if err != nil {
		fmt.Fprintf(errs, "failed to connect to %s: %v", addr, err)
		return
	}
	defer backend.Close()
	ended := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(&gate{to, stalled}, from)
		ended <- struct{}{}
	}
	go pass(backend, data)
	go pass(data, backend)
	select {
	case <-ended:
	case <-session.CloseChan():
	}
}

// gate drops everything once it is stalled.
type gate struct {
	to      io.Writer
	stalled <-chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.stalled:
		return len(p), nil
	default:
		return g.to.Write(p)
	}
}
