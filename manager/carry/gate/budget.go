// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"math"
	"runtime/debug"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/internal/tunnel"
)

const (
	// freeCalls are those that each peer may have, however much others hold.
	freeCalls = 64
	// peerConns bounds the connections of one peer that is proven. A laptop has four, and may be about
	// to replace them; a node agent has one.
	peerConns = 16
)

var errFull = status.Error(codes.ResourceExhausted,
	"this peer's calls hold as much of the manager's memory as they may")

// budget returns how many bytes calls may hold in all: a quarter of the memory limit. The rest is
// for what is known of the cluster, for peers that have proven nothing, and for the garbage collector.
func budget() int64 {
	const usual = 512 << 20 // the chart's
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		limit = usual
	}
	return limit / 4
}

// relieve ends calls of the peer that holds the most, and of these the one that holds the most, until
// all calls hold less than they may.
func (g *Gate) relieve() {
	over := func() bool { return g.limits.Memory > 0 && g.heldInAll.Load() > g.limits.Memory }
	if !over() {
		return
	}
	g.relief.Lock()
	defer g.relief.Unlock()
	for over() {
		a, h := g.heaviest()
		if h == nil {
			return
		}
		g.metrics.met(limitMemory)
		a.finish(h)
	}
}

// heaviest returns the stream that holds the most, of the peer that does.
func (g *Gate) heaviest() (at *account, heaviest *held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var peer *holder
	var most int64
	for c := range g.open {
		h, data := c.account.heaviest()
		if h == nil {
			continue
		}
		if p := c.account.holder; p != peer {
			if peer != nil && p.held.Load() <= peer.held.Load() {
				continue
			}
			peer, most = p, 0
		}
		if data > most {
			at, heaviest, most = &c.account, h, data
		}
	}
	return at, heaviest
}

// joins makes a connection one of a peer's, and returns the one that is to end for it, if any. It is
// called with mu held.
func (g *Gate) joins(c *Conn, peer string) (victim *Conn) {
	if _, present := g.open[c]; !present {
		return nil
	}
	h := g.holders[peer]
	if h == nil {
		h = &holder{name: peer}
		g.holders[peer] = h
	}
	h.conns = append(h.conns, c)
	c.account.move(h)
	if len(h.conns) > peerConns {
		return h.conns[0]
	}
	return nil
}

// forget takes a connection from its peer. It is called with mu held.
func (g *Gate) forget(c *Conn) {
	delete(g.open, c)
	h := c.account.payer()
	h.conns = slices.DeleteFunc(h.conns, func(other *Conn) bool { return other == c })
	if len(h.conns) == 0 && g.holders[h.name] == h {
		delete(g.holders, h.name)
	}
}

// mayCall reports whether a peer may have one call more: it holds less than is still free, so that one
// peer alone gets half of all, two a third each.
func (g *Gate) mayCall(h *holder) bool {
	if g.limits.Memory == 0 || h.calls.Load() < freeCalls {
		return true
	}
	return h.held.Load()+callMass <= g.limits.Memory-g.heldInAll.Load()
}

// ServerOptions have a server count what calls hold, and refuse and end calls as the gate says.
func (g *Gate) ServerOptions(c credentials.TransportCredentials) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.Creds(Credentials(c)), grpc.InTapHandle(g.Tap),
		grpc.StreamInterceptor(g.Stream), grpc.UnaryInterceptor(g.Unary)}
}

// Stream is a grpc.StreamServerInterceptor that counts what a call holds.
func (g *Gate) Stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo,
	handler grpc.StreamHandler) error {
	a, h, end, err := g.enterCall(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	if h == nil {
		return handler(srv, stream)
	}
	return handler(srv, &counted{stream, a, h})
}

// Unary is a grpc.UnaryServerInterceptor that counts calls.
func (g *Gate) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	a, h, end, err := g.enterCall(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if h != nil {
		a.read(h, math.MaxInt64)
	}
	return handler(ctx, req)
}

// enterCall counts a call until end is called. held is nil if it cannot be counted.
func (g *Gate) enterCall(ctx context.Context) (a *account, h *held, end func(), err error) {
	c := From(ctx)
	cancel, _ := ctx.Value(cancelKey{}).(context.CancelFunc)
	id := streamID(ctx)
	if c == nil || cancel == nil || id == 0 {
		return nil, nil, func() {}, nil
	}
	a = &c.account
	if !g.mayCall(a.payer()) {
		g.metrics.met(limitCalls)
		a.end(id)
		return nil, nil, nil, errFull
	}
	return a, a.begin(id, cancel), func() { a.end(id) }, nil
}

// counted is a stream whose messages are counted.
type counted struct {
	grpc.ServerStream
	account *account
	held    *held
}

func (c *counted) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.account.read(c.held, size(m))
	}
	return err
}

func (c *counted) SendMsg(m any) error {
	c.account.sends(c.held, size(m))
	return c.ServerStream.SendMsg(m)
}

// messageHead comes before each message of gRPC.
const messageHead = 5

func size(m any) int64 {
	switch m := m.(type) {
	case *tunnel.Frame:
		return messageHead + int64(m.Size())
	case proto.Message:
		return messageHead + int64(proto.Size(m))
	}
	return messageHead
}
