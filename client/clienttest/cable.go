// SPDX-License-Identifier: Apache-2.0

package clienttest

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Cable is a network path to the API server that can be cut: connections stay open at both ends,
// and carry nothing any more.
type Cable struct {
	listener net.Listener
	to       string

	mu     sync.Mutex
	pulled chan struct{} // closed when the connections go silent
	out    bool          // new connections are silent from the start
	open   []net.Conn
}

// NewCable returns a cable to a server, which exists until the test ends.
func NewCable(t testing.TB, a *APIServer) *Cable {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &Cable{listener: listener, to: a.addr, pulled: make(chan struct{})}
	go c.serve()
	t.Cleanup(func() {
		_ = listener.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, conn := range c.open {
			_ = conn.Close()
		}
	})
	return c
}

// Kubeconfig writes a kubeconfig that reaches the server over the cable.
func (c *Cable) Kubeconfig(t testing.TB, context string) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path,
		[]byte(fmt.Sprintf(kubeconfig, context, "http://"+c.listener.Addr().String())), 0o600))
	return path
}

// Pull silences every connection, and all that are made until Plug.
func (c *Cable) Pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.pulled)
	c.pulled, c.out = make(chan struct{}), true
}

// Plug lets new connections through. The old ones stay silent.
func (c *Cable) Plug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = false
}

func (c *Cable) serve() {
	for {
		near, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.open = append(c.open, near)
		out, pulled := c.out, c.pulled
		c.mu.Unlock()
		if out {
			continue
		}
		far, err := net.Dial("tcp", c.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		c.mu.Lock()
		c.open = append(c.open, far)
		c.mu.Unlock()
		go pass(far, near, pulled)
		go pass(near, far, pulled)
	}
}

// pass carries data, and its end, until it is cut.
func pass(to, from net.Conn, cut <-chan struct{}) {
	_, _ = io.Copy(&gate{to, cut}, from)
	select {
	case <-cut:
	default:
		_ = to.Close()
	}
}
