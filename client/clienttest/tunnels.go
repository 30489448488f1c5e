// SPDX-License-Identifier: Apache-2.0

package clienttest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
)

type parked struct {
	stream clientpb.Clients_AcceptServer
	done   chan struct{}
}

// ToPods decides about connections to pods from now on. If greeting returns a text, the connection
// gets it, and then an echo. Otherwise it is refused. Without ToPods the manager is one that does
// not support such connections.
func (m *Manager) ToPods(greeting func(*tunnelpb.Open) string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.toPod = greeting
}

// ToPod plays a pod.
func (m *Manager) ToPod(stream clientpb.Clients_ToPodServer) error {
	if _, err := keyHash(stream.Context()); err != nil {
		return err
	}
	m.mu.Lock()
	greeting := m.toPod
	m.mu.Unlock()
	if greeting == nil {
		return m.UnimplementedClientsServer.ToPod(stream)
	}
	open, conn, err := tunnel.Accept(stream)
	if err != nil {
		return err
	}
	text := greeting(open)
	if text == "" {
		return conn.Answer(tunnelpb.Opened_REFUSED, "nothing listens on it")
	}
	_ = conn.Answer(tunnelpb.Opened_OK, "")
	_, _ = conn.Write([]byte(text))
	_, err = io.Copy(conn, conn)
	_ = conn.CloseWrite()
	return err
}

// Want asks the laptop with a key for more parked streams.
func (m *Manager) Want(hash string, n uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	stream, ok := m.sessions[hash]
	if !ok {
		return fmt.Errorf("no session of %s", hash)
	}
	return stream.Send(&clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_WantAccepts{WantAccepts: n}})
}

func (m *Manager) queue(hash string) chan *parked {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.parked[hash] == nil {
		m.parked[hash] = make(chan *parked, 4096)
	}
	return m.parked[hash]
}

// Accept parks a stream.
func (m *Manager) Accept(stream clientpb.Clients_AcceptServer) error {
	hash, err := keyHash(stream.Context())
	if err != nil {
		return err
	}
	p := &parked{stream: stream, done: make(chan struct{})}
	m.queue(hash) <- p
	select {
	case <-p.done:
	case <-stream.Context().Done():
	}
	return nil
}

// Parked returns the number of streams that wait for a key.
func (m *Manager) Parked(hash string) int {
	queue := m.queue(hash)
	alive := 0
	for range len(queue) {
		p := <-queue
		if p.stream.Context().Err() == nil {
			alive++
			queue <- p
		}
	}
	return alive
}

// Open opens a tunnel to the laptop that holds an intercept, as a node agent does. A tunnel for a
// UDP port begins with a datagram, "hello".
func (m *Manager) Open(ctx context.Context, i *v1alpha1.Intercept, probe bool) (*tunnel.Conn,
	*tunnelpb.Opened, error) {
	hash := i.Spec.Client.KeyHash
	m.mu.Lock()
	for session := range m.sessions {
		if i.Spec.HeldBy(session) {
			hash = session
		}
	}
	m.mu.Unlock()
	for {
		select {
		case p := <-m.queue(hash):
			if p.stream.Context().Err() != nil {
				continue
			}
			conn, err := tunnel.Open(p.stream, &tunnelpb.Open{
				InterceptUid: string(i.UID), InterceptNamespace: i.Namespace, InterceptName: i.Name,
				RemoteAddr: "10.0.0.1:1234", LocalAddr: "10.0.0.2:8080", Pod: "orders-0", Probe: probe,
				Datagrams: i.Status.Protocol == v1alpha1.ProtocolUDP && !probe,
			}, tunnel.OnClose(sync.OnceFunc(func() { close(p.done) })))
			if err != nil {
				return nil, nil, err
			}
			if i.Status.Protocol == v1alpha1.ProtocolUDP && !probe {
				if _, err := tunnel.WriteDatagram(conn, []byte("hello"), nil); err != nil {
					return nil, nil, err
				}
			}
			opened, err := conn.Opened(ctx)
			return conn, opened, err
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}
