// SPDX-License-Identifier: Apache-2.0

// Package outbound carries connections from laptops to ports of the pods that they intercept. A node
// agent cannot be dialled, so it parks streams here, and each connection takes one.
package outbound

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/tunnel"
)

// maxParked bounds the streams that wait for one node; a node agent parks far fewer.
const maxParked = 64

var errNoAgent = errors.New("its node agent is not connected, or older than the traffic manager")

// Agents holds the streams that node agents have parked. It is safe for concurrent use.
type Agents struct {
	closing <-chan struct{}

	mu    sync.Mutex
	nodes map[string]*node
}

// node is what waits for each other on one node.
type node struct {
	parked  []*parked
	waiting []chan *parked
}

// parked is a node agent's stream.
type parked struct {
	tunnel.Stream
	done chan error // has room for the one value that ends the stream's call
}

// release ends the stream's call, the first time.
func (p *parked) release(err error) {
	select {
	case p.done <- err:
	default:
	}
}

// NewAgents makes one that ends parked streams when closing is closed.
func NewAgents(closing <-chan struct{}) *Agents {
	return &Agents{closing: closing, nodes: map[string]*node{}}
}

// Serve keeps a stream of the agent on a node until a connection takes it, and then until that has
// ended.
func (a *Agents) Serve(name string, stream tunnel.Stream) error {
	p := &parked{Stream: stream, done: make(chan error, 1)}
	if !a.park(name, p) {
		return status.Error(codes.ResourceExhausted, "enough streams are waiting")
	}
	select {
	case err := <-p.done:
		return err
	case <-stream.Context().Done():
	case <-a.closing:
	}
	if a.unpark(name, p) {
		return status.Error(codes.Unavailable, "the stream has not been needed")
	}
	return <-p.done // whoever relays the connection notices its end
}

func (a *Agents) park(name string, p *parked) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	if n == nil {
		n = &node{}
		a.nodes[name] = n
	}
	if len(n.waiting) > 0 {
		n.waiting[0] <- p // has room for one
		n.waiting = n.waiting[1:]
		a.tidy(name, n)
		return true
	}
	if len(n.parked) >= maxParked {
		return false
	}
	n.parked = append(n.parked, p)
	return true
}

// unpark is false if the stream is in use.
func (a *Agents) unpark(name string, p *parked) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	if n == nil {
		return false
	}
	i := slices.Index(n.parked, p)
	if i < 0 {
		return false
	}
	n.parked = slices.Delete(n.parked, i, i+1)
	a.tidy(name, n)
	return true
}

func (a *Agents) tidy(name string, n *node) {
	if len(n.parked) == 0 && len(n.waiting) == 0 {
		delete(a.nodes, name)
	}
}

// take gives a stream to a node's agent, and waits for one no longer than patience.
func (a *Agents) take(ctx context.Context, name string, patience time.Duration) (*parked, error) {
	a.mu.Lock()
	n := a.nodes[name]
	if n == nil {
		n = &node{}
		a.nodes[name] = n
	}
	for len(n.parked) > 0 {
		p := n.parked[len(n.parked)-1] // the newest is the least likely to be dead
		n.parked = n.parked[:len(n.parked)-1]
		if p.Context().Err() == nil {
			a.tidy(name, n)
			a.mu.Unlock()
			return p, nil
		}
		p.release(status.Error(codes.Unavailable, "the stream broke"))
	}
	w := make(chan *parked, 1)
	n.waiting = append(n.waiting, w)
	a.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case p := <-w:
		return p, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(n.waiting, w); i >= 0 {
		n.waiting = slices.Delete(n.waiting, i, i+1)
	}
	if a.nodes[name] == n {
		a.tidy(name, n)
	}
	select {
	case p := <-w:
		return p, nil
	default:
		return nil, errNoAgent
	}
}
