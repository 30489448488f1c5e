// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// wire is a network between node agents and the manager that can swallow everything, as when a node
// loses its power.
type wire struct {
	net.Listener
	cut chan struct{}
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{Listener: l, cut: make(chan struct{})}
	var pumps sync.WaitGroup
	t.Cleanup(func() { assert.NoError(t, l.Close()); pumps.Wait() })
	pumps.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			pumps.Go(func() { w.pump(far, near) })
			pumps.Go(func() { w.pump(near, far) })
		}
	})
	return w
}

// pump passes bytes on until the wire is cut. Then it reads on and drops them.
func (w *wire) pump(to, from net.Conn) {
	defer to.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		select {
		case <-w.cut:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func TestNodeThatFallsSilentIsNoticed(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	k.pod(t, rs, "p2", "node-2")
	m.laptop(t, "alice", 0)
	m.agent(t, "node-1")
	w := newWire(t, m.grpc)
	lost := *m
	lost.grpc = w.Addr().String()
	lost.agent(t, "node-2")
	k.create(t, asks("alice", "http", "alice"))
	k.until(t, "alice", v1alpha1.StateActive)

	began := time.Now()
	close(w.cut)
	var st v1alpha1.InterceptStatus
	require.Eventually(t, func() bool {
		st = k.intercept(t,
			"alice").Status
		return st.State == v1alpha1.StatePending
	}, 6*patient, often)
	t.Logf("noticed after %s", time.Since(began))
	assert.Equal(t, "1/2", st.Coverage)
	assert.Equal(t, "pod p2: no node agent on node node-2", st.Message)
}
