// SPDX-License-Identifier: Apache-2.0

// Package outbound connects laptops to ports of the pods that they intercept (--to-pod). A connection
// is opened from within the pod, if a rule of its intercept has that port, and ends with the rule.
package outbound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/part"
)

// dialTimeout bounds a connect to a port of a pod from within it.
const dialTimeout = 5 * time.Second

// errNotAllowed ends and refuses connections that no rule allows.
var errNotAllowed = errors.New("the intercept, or this port of it, has ended")

// Node is what the pods of a node have in common. It is a part.Kind.
type Node struct {
	mu   sync.Mutex
	pods map[string]*podPart // by UID
}

// New returns a node without pods.
func New() *Node { return &Node{pods: map[string]*podPart{}} }

// Connect serves a connection of a laptop to a port of a pod, if an assigned rule of the
// connection's intercept has that port. It returns at once.
func (n *Node) Connect(open *tunnelpb.Open, conn *tunnel.Conn) {
	n.mu.Lock()
	p := n.pods[open.GetPodUid()]
	n.mu.Unlock()
	err := errors.New("it is not among those that are intercepted on this node")
	if p != nil {
		err = p.begin(open, conn)
	}
	if err != nil {
		refuse(conn, open, tunnelpb.Opened_UNKNOWN, err)
	}
}

func refuse(conn *tunnel.Conn, open *tunnelpb.Open, result tunnelpb.Opened_Result, err error) {
	_ = conn.Answer(result, fmt.Sprintf("port %d of pod %s: %v", open.GetToPort(), open.GetPod(), err))
	_ = conn.Close()
}

// podPart is the part of one pod.
type podPart struct {
	node *Node
	pod  *part.Pod

	mu      sync.Mutex
	want    *agentpb.Pod // nil: no connection begins
	streams map[*stream]struct{}
}

// stream is one connection of a laptop.
type stream struct {
	intercept string // UID
	port      uint32
	cancel    context.CancelCauseFunc
}

// Open implements part.Kind.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	p := &podPart{node: n, pod: pod, streams: map[*stream]struct{}{}}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[pod.UID] = p
	return p, nil
}

// Apply implements part.Part.
func (p *podPart) Apply(want *agentpb.Pod) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.want = want
	p.abortDisallowed()
	return nil
}

// abortDisallowed aborts the streams that no rule allows. When a newer node agent has the rules, they
// go on. p.mu must be held.
func (p *podPart) abortDisallowed() {
	if len(p.streams) == 0 || p.pod.Superseded() {
		return
	}
	for s := range p.streams {
		if !s.allowed(p.want) {
			s.cancel(errNotAllowed)
		}
	}
}

// allowed reports whether a rule has the stream's port.
func (s *stream) allowed(want *agentpb.Pod) bool {
	return slices.ContainsFunc(want.GetTargets(), func(t *agentpb.Target) bool {
		return slices.ContainsFunc(t.GetRules(), func(r *agentpb.Rule) bool {
			return r.GetInterceptUid() == s.intercept && slices.Contains(r.GetToPod(), s.port)
		})
	})
}

// begin begins a stream, or returns why there is none.
func (p *podPart) begin(open *tunnelpb.Open, conn *tunnel.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &stream{intercept: open.GetInterceptUid(), port: open.GetToPort()}
	switch {
	case !s.allowed(p.want):
		return errNotAllowed
	case p.pod.HostNetwork:
		return errors.New("the pod is on its node's network, so that its ports cannot be told from the node's own")
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancelCause(p.pod.Context)
	p.streams[s] = struct{}{}
	p.pod.Go(func() { // under the lock, so before Drain
		defer p.end(s)
		p.join(ctx, open, conn)
	})
	return nil
}

func (p *podPart) end(s *stream) {
	s.cancel(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams, s)
}

// join connects a laptop with a port of the pod until either ends, or ctx does.
func (p *podPart) join(ctx context.Context, open *tunnelpb.Open, conn *tunnel.Conn) {
	app, err := p.dial(ctx, uint16(open.GetToPort()))
	if err != nil {
		result := tunnelpb.Opened_REFUSED
		if errors.Is(err, context.DeadlineExceeded) {
			result = tunnelpb.Opened_TIMEOUT
		}
		refuse(conn, open, result, err)
		return
	}
	if err := conn.Answer(tunnelpb.Opened_OK, ""); err != nil {
		_ = app.SetLinger(0)
		_ = app.Close()
		conn.Reset("could not answer")
		return
	}
	stop := context.AfterFunc(ctx, func() {
		conn.Reset(context.Cause(ctx).Error())
		_ = app.SetLinger(0)
		_ = app.Close()
	})
	defer stop()
	sent, received, err := tunnel.Copy(app, conn)
	p.pod.Log.Debug("connection of a laptop ended", "intercept", open.GetInterceptNamespace()+"/"+
		open.GetInterceptName(), "port", open.GetToPort(),
		"sent", sent, "received", received, "error", err)
}

// dial connects to a port from within the pod: on a loopback address, where its containers talk to
// one another, or else on its own.
func (p *podPart) dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var problem error
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, p.pod.IPs...)
	for _, ip := range addresses {
		c, err := p.pod.Namespace.Dial(ctx, ip, netip.AddrPortFrom(ip, port), nil)
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, unix.ECONNREFUSED):
		case !ip.IsLoopback():
			problem = err // a pod may lack a loopback address, but not its own
		}
	}
	return nil, cmp.Or(problem, errors.New("nothing listens on it"))
}

// Problem implements part.Part.
func (p *podPart) Problem(part.Target, *agentpb.Rule) (none part.Problem) { return none }

// Drain implements part.Part.
func (p *podPart) Drain() error { return p.Apply(nil) }

// Close implements part.Part. What it had open has ended with the pod's context.
func (p *podPart) Close() error {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	if p.node.pods[p.pod.UID] == p { // else the pod has been opened again
		delete(p.node.pods, p.pod.UID)
	}
	return nil
}
