// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	framing "sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// connection is one steered connection.
type connection struct {
	proxy         *Proxy
	target        *Target
	client        *stream.TCP
	conn          *net.TCPConn   // the client's, too
	remote, local netip.AddrPort // the client; the app as the client knows it
}

// Serve serves one steered connection, whose local address is the app's and whose remote address is
// the client's. It returns when the connection is done, and has closed it. When ctx is cancelled
// the connection is reset, or ended in order: see ErrDrained. It never panics.
func (p *Proxy) Serve(ctx context.Context, conn *net.TCPConn, t *Target) {
	defer conn.Close()
	t.connections.Add(1)
	t.open.Add(1)
	defer t.open.Add(-1)
	p.metrics.connections.Inc()
	p.metrics.open.Inc()
	defer p.metrics.open.Dec()
	defer func() {
		if v := recover(); v != nil {
			p.recovered(t, v)
			conn.SetLinger(0)
		}
	}()

	client, err := stream.NewTCP(conn)
	if err != nil {
		p.cfg.Log.Warn("connection cannot be served", "pod", t.pod, "error", err)
		return
	}
	c := &connection{proxy: p, target: t, client: client, conn: conn,
		remote: addrPort(conn.RemoteAddr()), local: addrPort(conn.LocalAddr())}
	now := t.rules.Load()
	if rule := now.awayTCP(); rule != nil && !now.kubelet.mayProbe(c.remote.Addr()) {
		rule.unanswered[divert.Unreachable].Add(1)
	}
	switch tcp := now.tcp(); {
	case tcp != nil:
		c.serveWhole(ctx, tcp)
	case now.wholeOnly():
		c.joinApp(ctx, new(stream.Buffer))
	default:
		c.serveRequests(ctx)
	}
}

// recovered keeps a fault in one connection from all the others.
func (p *Proxy) recovered(t *Target, v any) {
	p.metrics.panics.Inc()
	p.cfg.Log.Error("connection was reset because of a fault in the proxy", "pod", t.pod, "panic", v,
		"stack", string(debug.Stack()))
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// serveRequests takes the connection request by request, if it speaks HTTP.
func (c *connection) serveRequests(ctx context.Context) {
	http1.Serve(ctx, http1.Config{Client: c.client, Target: c, HTTP2: streams{c},
		OpenTimeout: c.proxy.cfg.OpenTimeout, Budget: &c.proxy.budget, Log: c.proxy.cfg.Log})
}

// Match implements http1.Target.
func (c *connection) Match(head match.Head) divert.Intercept {
	rule, away := c.target.rules.Load().http(head)
	switch {
	case rule == nil:
		return nil
	case away:
		c.missed(rule, divert.Unreachable)
		return nil
	}
	return &matched{connection: c, rule: rule}
}

// missed counts a request that the laptop does not answer.
func (c *connection) missed(rule *activeRule, why divert.Reason) {
	rule.unanswered[why].Add(1)
	c.proxy.metrics.unanswered.Inc()
}

// Matchable implements http1.Target.
func (c *connection) Matchable() bool { return c.target.rules.Load().matchable() }

// Passed implements http1.Target and http2.Target.
func (c *connection) Passed(n int) { c.proxy.metrics.passed.Add(float64(n)) }

// Recovered implements http1.Target and http2.Target.
func (c *connection) Recovered(v any) { c.proxy.recovered(c.target, v) }

// Began implements http1.Target. It counts what the connection speaks.
func (c *connection) Began(first []byte, http bool) {
	switch {
	case http:
		c.target.http.Add(1)
	case isClientHello(first):
		c.target.tls.Add(1)
	}
}

// isClientHello reports whether a connection that begins with p speaks TLS: a record of type
// handshake and major version 3, with a ClientHello in it (RFC 8446 §4, §5.1), as far as these
// bytes are there.
func isClientHello(p []byte) bool {
	return len(p) > 0 && p[0] == 0x16 && (len(p) < 2 || p[1] == 0x03) && (len(p) < 6 || p[5] == 0x01)
}

// streams is a connection of which each stream of HTTP/2 is a request.
type streams struct{ *connection }

// Match implements http2.Target. The kubelet's gRPC probes are the app's.
func (c streams) Match(head match.Head) divert.Intercept {
	if k := &c.target.rules.Load().kubelet; k.probesHealth(head, c.remote.Addr()) {
		return nil
	}
	return c.connection.Match(head)
}

// dial begins to connect to the app. If wait is given there is a connection when that has returned;
// it waits for as long as the client is there.
func (c *connection) dial(soon bool) (app *stream.TCP, wait func(context.Context) error, err error) {
	socket, connected, err := c.target.app.DialApp(c.remote, c.local, soon)
	if err != nil {
		return nil, nil, err
	}
	if connected != nil {
		wait = func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer c.client.OnReset(cancel)()
			return connected(ctx)
		}
	}
	app, err = stream.NewTCP(socket)
	return app, wait, err
}

func (c *connection) openMessage(rule *activeRule) *tunnelpb.Open {
	return &tunnelpb.Open{
		InterceptUid: rule.InterceptUID, InterceptNamespace: rule.Namespace, InterceptName: rule.Name,
		RemoteAddr: c.remote.String(), LocalAddr: c.local.String(), Pod: c.target.pod,
	}
}

// matched is a rule that a request on the connection matches: it implements divert.Intercept.
type matched struct {
	*connection
	rule *activeRule
}

func (m *matched) Key() string    { return m.rule.InterceptUID }
func (m *matched) String() string { return m.rule.called() }

func (m *matched) Open(ctx context.Context) (divert.Tunnel, error) {
	t, err := m.proxy.cfg.Tunnels.Open(ctx, m.openMessage(m.rule))
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (m *matched) Track(retire func()) (untrack func()) {
	m.proxy.metrics.tunnels.Inc()
	forget := m.rule.track(retire)
	return func() {
		forget()
		m.proxy.metrics.tunnels.Dec()
	}
}

func (m *matched) Sent() {
	m.rule.matched.Add(1)
	m.proxy.metrics.matched.Inc()
}

// Answered implements divert.Intercept.
func (m *matched) Answered() { m.rule.answered.Add(1) }

// Unread implements http1.Target.
func (c *connection) Unread(p []byte, doubt error) {
	rule, away := c.target.rules.Load().http(laxHead(p))
	if rule == nil {
		return
	}
	reason := divert.Framing
	if errors.Is(doubt, framing.DoubtHeadTooLong) {
		reason = divert.HeadTooLarge
	} else if r := divert.ReasonOf(doubt); r != divert.Other {
		reason = r
	}
	if away {
		reason = divert.Unreachable
	}
	c.missed(rule, reason)
}

func (m *matched) Lost(why error) { m.missed(m.rule, divert.ReasonOf(why)) }

func (m *matched) FellBack(why error) {
	m.missed(m.rule, divert.ReasonOf(why))
	m.rule.fallbacks.Add(1)
	m.proxy.metrics.fallbacks.Inc()
	m.fellBack(m.rule, why)
}

// fellBack says so in the log, but not for each request while a laptop is away.
func (c *connection) fellBack(rule *activeRule, why error) {
	if rule.worthLogging(time.Now()) {
		c.proxy.cfg.Log.Info("the app gets what an intercept matches, since the laptop cannot take it",
			"intercept", rule.called(), "pod", c.target.pod, "error", why)
	}
}
