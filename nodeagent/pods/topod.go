// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// visitTimeout bounds connecting to a port of a pod from within it.
const visitTimeout = 5 * time.Second

var errNotAllowed = errors.New("the intercept, or this port of it, has ended")

// visit is a connection of a laptop to a port of the pod.
type visit struct {
	intercept string // UID
	port      uint32
	cancel    context.CancelCauseFunc
}

// ToPod serves a connection of a laptop to a port of a pod, if an assigned rule of the connection's
// intercept has that port. It returns at once.
func (s *Set) ToPod(open *tunnelpb.Open, conn *tunnel.Conn) {
	s.mu.Lock()
	p := s.pods[open.GetPodUid()]
	s.mu.Unlock()
	err := errors.New("it is not among those that are intercepted on this node")
	if p != nil {
		err = p.visit(open, conn)
	}
	if err != nil {
		refuse(conn, open, tunnelpb.Opened_UNKNOWN, err)
	}
}

func refuse(conn *tunnel.Conn, open *tunnelpb.Open, result tunnelpb.Opened_Result, err error) {
	_ = conn.Answer(result, fmt.Sprintf("port %d of pod %s: %v", open.GetToPort(), open.GetPod(), err))
	_ = conn.Close()
}

// visit begins a connection, or says why there is none.
func (p *pod) visit(open *tunnelpb.Open, conn *tunnel.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := &visit{intercept: open.GetInterceptUid(), port: open.GetToPort()}
	switch {
	case !v.allowed(p.desired):
		return errNotAllowed
	case p.desired.GetHostNetwork():
		return errors.New("the pod is on its node's network, so that its ports cannot be told from the node's own")
	case p.site == nil:
		return fmt.Errorf("the pod cannot be reached: %s", cmp.Or(p.problem, "it is gone"))
	}
	var ctx context.Context
	ctx, v.cancel = context.WithCancelCause(p.site.ctx)
	if p.visits == nil {
		p.visits = map[*visit]struct{}{}
	}
	p.visits[v] = struct{}{}
	s := p.site
	s.serving.Go(func() { // the site is ended only after it has been taken from the pod
		defer p.departed(v)
		s.join(ctx, open, conn)
	})
	return nil
}

func (p *pod) departed(v *visit) {
	v.cancel(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.visits, v)
}

// allowed says whether a rule lets the visit be.
func (v *visit) allowed(want *agentpb.Pod) bool {
	return slices.ContainsFunc(want.GetTargets(), func(t *agentpb.Target) bool {
		return slices.ContainsFunc(t.GetRules(), func(r *agentpb.Rule) bool {
			return r.GetInterceptUid() == v.intercept && slices.Contains(r.GetToPod(), v.port)
		})
	})
}

// endVisits ends those that no rule allows any longer. During an upgrade, when another agent has
// the rules, they go on. p.mu must be held.
func (p *pod) endVisits() {
	if len(p.visits) == 0 || isClosed(p.set.superseded) {
		return
	}
	for v := range p.visits {
		if !v.allowed(p.desired) {
			v.cancel(errNotAllowed)
		}
	}
}

// join connects a laptop with a port of the pod until either ends, or ctx does.
func (s *site) join(ctx context.Context, open *tunnelpb.Open, conn *tunnel.Conn) {
	app, err := s.enter(ctx, uint16(open.GetToPort()))
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
	s.pod.log.Debug("connection of a laptop ended", "intercept", open.GetInterceptNamespace()+"/"+
		open.GetInterceptName(), "port", open.GetToPort(),
		"sent", sent, "received", received, "error", err)
}

// enter connects to a port from within the pod: on a loopback address, where its containers talk to
// one another, or else on its own.
func (s *site) enter(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, visitTimeout)
	defer cancel()
	var problem error
	for _, ip := range append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, s.ips...) {
		c, err := s.ns.Dial(ctx, ip, netip.AddrPortFrom(ip, port), nil)
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
