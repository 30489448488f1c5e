// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

var errCalls = status.Error(codes.ResourceExhausted,
	"a connection whose peer has proven nothing may not have more calls at a time")

// From returns the connection of a call's context; nil if no gate was before it.
func From(ctx context.Context) *Conn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	if a, ok := p.Addr.(*addr); ok {
		return a.conn
	}
	return nil
}

// cancelKey is that of what ends a call, in its context.
type cancelKey struct{}

// Tap refuses a call that its connection may not make, and lets the gate end the others. It is a
// tap.ServerInHandle: no goroutine exists for the call yet.
func (g *Gate) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	c := From(ctx)
	if c == nil {
		return ctx, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	ctx = context.WithValue(ctx, cancelKey{}, cancel)
	if c.proven.Load() {
		return ctx, nil
	}
	session := strings.HasSuffix(info.FullMethodName, "/Session")
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, unproven := g.conns[c]; !unproven {
		return ctx, nil
	}
	if g.limits.Calls > 0 && c.calls >= g.limits.Calls || session && c.sessions >= sessionCalls {
		cancel()
		g.metrics.refused(boundCalls)
		c.refuse()
		return ctx, errCalls
	}
	c.last++
	number := c.last
	c.calls++
	g.calls++
	if session {
		c.sessions++
	} else {
		c.cancelable(number, cancel)
	}
	context.AfterFunc(ctx, func() { c.ended(number, session) })
	if g.limits.CallsInAll > 0 && g.calls > g.limits.CallsInAll {
		g.endCalls(func(c *Conn) int64 { return int64(len(c.cancels)) }, boundCalls)
		if ctx.Err() != nil {
			c.refuse()
		}
	}
	return ctx, nil
}

// cancelable is called with mu held.
func (c *Conn) cancelable(number uint64, cancel context.CancelFunc) {
	if c.cancels == nil {
		c.cancels = map[uint64]context.CancelFunc{}
	}
	c.cancels[number] = cancel
}

// refuse counts a call that is refused, and is called with mu held.
func (c *Conn) refuse() {
	if c.refused++; c.refused > refusals {
		go func() { _ = c.Close() }()
	}
}

// ended counts a call no longer.
func (c *Conn) ended(number uint64, session bool) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if session {
		c.sessions--
	}
	if c.calls > 0 { // else the connection has left
		c.calls--
		c.gate.calls--
	}
	delete(c.cancels, number)
}

// endCalls ends the calls of the connection that has the most of something; sessions have a timeout
// of their own. It is called with mu held.
func (g *Gate) endCalls(of func(*Conn) int64, bound string) {
	var found *Conn
	for c := range g.conns {
		if found == nil || of(c) > of(found) {
			found = c
		}
	}
	if found == nil {
		return
	}
	g.metrics.refused(bound)
	g.held -= found.read
	found.read = 0
	for _, cancel := range found.cancels {
		cancel()
	}
	found.cancels = nil
}
