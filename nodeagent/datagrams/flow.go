// SPDX-License-Identifier: Apache-2.0

package datagrams

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Bounds on what waits in flows for a laptop that is slow or has not answered yet. Beyond them
// datagrams are dropped, as by a full socket.
const (
	maxWaiting      = 64        // datagrams of a flow
	maxWaitingBytes = 256 << 10 // bytes of a flow
	maxQueued       = 32 << 20  // bytes of a pod
)

// receivePause is the pause after receiving has failed.
const receivePause = 50 * time.Millisecond

// quietFor is how long after a fallback of a port no other one is logged.
const quietFor = 10 * time.Second

type flowKey struct{ client, local netip.AddrPort }

// flow is the datagrams between one client and one port.
type flow struct {
	flowKey
	rule     *Rule
	queue    chan []byte
	waiting  atomic.Int64 // bytes in queue, and those kept for the app
	last     atomic.Int64 // when the last datagram was sent, in Unix nanoseconds
	asked    atomic.Int64 // datagrams from the client
	answered atomic.Int64 // datagrams from the laptop
	cancel   context.CancelFunc
	place    *list.Element // in port.recent
}

// receive reads what is steered to a socket until the socket is closed.
func (p *Pod) receive(c *net.UDPConn) {
	buffer, control := make([]byte, tunnel.MaxDatagram+1), make([]byte, 128)
	for {
		n, m, _, from, err := c.ReadMsgUDPAddrPort(buffer, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var to netip.AddrPort
		if err == nil {
			to, err = destination(control[:m])
		}
		if err != nil {
			p.cfg.Log.Debug("receive a datagram", "error", err)
			time.Sleep(receivePause)
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		p.take(flowKey{from, to}, slices.Clone(buffer[:n]))
	}
}

// take passes a datagram to its flow.
func (p *Pod) take(key flowKey, datagram []byte) {
	if !slices.Contains(p.cfg.IPs, key.local.Addr()) {
		return // something in the pod has found the socket itself
	}
	p.mu.Lock()
	at := p.ports[key.local.Port()]
	if at == nil || !at.steered {
		p.mu.Unlock()
		p.toApp(key, datagram) // it was on its way when the port was left to the app
		return
	}
	f := at.flows[key]
	if f == nil {
		f = p.begin(key, at)
	}
	at.recent.MoveToFront(f.place)
	kept := p.offer(f, datagram)
	p.mu.Unlock()
	if !kept {
		p.cfg.Metrics.dropped.Inc()
	}
}

// begin creates a flow. p.mu must be held.
func (p *Pod) begin(key flowKey, at *port) *flow {
	if len(at.flows) >= p.cfg.MaxFlows {
		oldest := at.recent.Back().Value.(*flow)
		oldest.cancel()
		at.forget(oldest)
		p.cfg.Metrics.evicted.Inc()
	}
	ctx, cancel := context.WithCancel(p.ctx)
	f := &flow{flowKey: key, rule: at.rule, queue: make(chan []byte, maxWaiting), cancel: cancel}
	f.touch()
	at.flows[key] = f
	f.place = at.recent.PushFront(f)
	at.stats.Flows++
	p.cfg.Metrics.flows.Inc()
	p.running.Go(func() {
		defer p.cfg.Metrics.flows.Dec()
		defer cancel()
		p.serve(ctx, f)
	})
	return f
}

// forget removes a flow, unless another one has its addresses by now.
func (at *port) forget(f *flow) {
	if at.flows[f.flowKey] == f {
		delete(at.flows, f.flowKey)
		at.recent.Remove(f.place)
	}
}

// offer puts a datagram into a flow's queue if there is room. p.mu must be held, so that none
// reaches a flow that has ended.
func (p *Pod) offer(f *flow, datagram []byte) bool {
	size := int64(len(datagram))
	if f.waiting.Load()+size > maxWaitingBytes || p.queued.Load()+size > maxQueued {
		return false
	}
	select {
	case f.queue <- datagram:
		f.waiting.Add(size)
		p.queued.Add(size)
		f.asked.Add(1)
		f.touch()
		return true
	default:
		return false
	}
}

// release frees the room that a datagram took.
func (p *Pod) release(f *flow, datagram []byte) {
	f.waiting.Add(-int64(len(datagram)))
	p.queued.Add(-int64(len(datagram)))
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

// idle returns how long the flow lasts if nothing more is sent. It is 0 or negative if the flow is
// over.
func (f *flow) idle(cfg *Config) time.Duration {
	most := cfg.Idle
	if f.asked.Load() == 1 {
		most = cfg.IdleOnce
	}
	return most - time.Since(time.Unix(0, f.last.Load()))
}

// serve runs a flow until it ends.
func (p *Pod) serve(ctx context.Context, f *flow) {
	t, kept, err := p.open(ctx, f)
	for _, d := range kept {
		p.release(f, d)
	}
	if err == nil {
		p.count(f, func(s *Stats) { s.Matched++ })
		if kept, err = p.carry(ctx, f, t); err != nil {
			t.Reset("the flow has ended")
		} else {
			_ = t.Close()
		}
	} else if ctx.Err() == nil {
		p.count(f, func(s *Stats) { s.Fallbacks++ })
	}
	p.end(ctx, f, kept, err)
}

func (p *Pod) count(f *flow, change func(*Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := p.ports[f.local.Port()]; at.rule != nil && at.rule.InterceptUID == f.rule.InterceptUID {
		change(&at.stats)
	}
}

// end removes a flow. If it failed, the app gets what the laptop has not taken, and for a while
// everything else that arrives.
func (p *Pod) end(ctx context.Context, f *flow, kept [][]byte, err error) {
	number := f.local.Port()
	p.mu.Lock()
	at := p.ports[number]
	at.forget(f)
	failed := err != nil && ctx.Err() == nil
	if failed {
		p.pause(number, at)
		if time.Since(at.logged) > quietFor {
			at.logged = time.Now()
			p.cfg.Log.Info("datagrams go to the app for a moment (further such cases are only counted)",
				"port", number,
				"intercept", f.rule.Namespace+"/"+f.rule.Name, "reason", err)
		}
	}
	p.mu.Unlock()
	for _, d := range kept {
		p.toApp(f.flowKey, d)
	}
	for len(f.queue) > 0 {
		d := <-f.queue
		p.release(f, d)
		p.toApp(f.flowKey, d)
	}
}

// toApp sends a datagram to the app as from its client. The port must not be steered, or the
// datagram would come back.
func (p *Pod) toApp(key flowKey, datagram []byte) {
	p.mu.Lock()
	at := p.ports[key.local.Port()]
	steered := at != nil && at.steered
	p.mu.Unlock()
	if !steered && p.sender.send(key.client, key.local, datagram) == nil {
		p.cfg.Metrics.toApp.Inc()
	} else {
		p.cfg.Metrics.dropped.Inc()
	}
}

// open opens the tunnel. Until the laptop has answered, what the client sends is both sent on and
// kept for the app.
func (p *Pod) open(ctx context.Context, f *flow) (opened *tunnel.Conn, kept [][]byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.OpenTimeout,
		errors.New("the laptop did not answer in time"))
	defer cancel()
	t, err := p.cfg.Tunnels.Open(ctx, &tunnelpb.Open{
		InterceptUid: f.rule.InterceptUID, InterceptNamespace: f.rule.Namespace, InterceptName: f.rule.Name,
		RemoteAddr: f.client.String(), LocalAddr: f.local.String(), Pod: p.cfg.Name, Datagrams: true,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open a tunnel: %w", err)
	}
	// a write may block
	defer context.AfterFunc(ctx, func() { t.Reset("the laptop did not answer in time") })()
	answer := make(chan error, 1)
	go func() {
		opened, err := t.Opened(ctx)
		if err == nil && opened.GetResult() != tunnelpb.Opened_OK {
			err = fmt.Errorf("the laptop answered %s: %s", opened.GetResult(), opened.GetMessage())
		}
		answer <- err
	}()
	var scratch []byte
	for {
		select {
		case d := <-f.queue:
			kept = append(kept, d)
			scratch, _ = tunnel.WriteDatagram(t, d, scratch) // an error shows in the answer
		case err := <-answer:
			if err == nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				t.Reset("the app has it")
				return nil, kept, err
			}
			p.cfg.Metrics.toLaptop.Add(float64(len(kept)))
			return t, kept, nil
		}
	}
}

// carry passes datagrams both ways until the flow is idle or ended, which is not an error, or until
// the laptop is gone. In that case it returns the last datagrams that were not answered.
func (p *Pod) carry(ctx context.Context, f *flow, t *tunnel.Conn) (unanswered [][]byte, err error) {
	answers := make(chan error, 1)
	p.running.Go(func() { answers <- p.answer(f, t) })
	defer context.AfterFunc(ctx, func() { t.Reset("the flow has ended") })() // a write may block
	idle := time.NewTimer(f.idle(&p.cfg))
	defer idle.Stop()
	var scratch []byte
	var recent recent
	for {
		select {
		case d := <-f.queue:
			recent.add(d, f.answered.Load())
			scratch, err = tunnel.WriteDatagram(t, d, scratch)
			p.release(f, d)
			if err != nil {
				return recent.unanswered(f.answered.Load()), fmt.Errorf("send to the laptop: %w", err)
			}
			p.cfg.Metrics.toLaptop.Inc()
		case err := <-answers:
			return recent.unanswered(f.answered.Load()), err
		case <-idle.C:
			left := f.idle(&p.cfg)
			if left <= 0 && p.remove(f) {
				return nil, nil
			}
			idle.Reset(max(left, time.Millisecond))
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Bounds on what is kept for the app of what a laptop has not answered yet: how much, and for how
// long. If the laptop or its process goes away, its answers are lost.
const (
	maxRecent      = 4
	maxRecentBytes = 16 << 10
	recentFor      = 2 * time.Second
)

// recent is the last datagrams to a laptop since its last answer.
type recent struct {
	sent     [][]byte
	last     time.Time
	answered int64 // the number of answers at that time
}

func (r *recent) add(d []byte, answered int64) {
	r.sent = append(r.unanswered(answered), d)
	r.last, r.answered = time.Now(), answered
	bytes := 0
	for i := len(r.sent) - 1; i >= 0; i-- {
		if bytes += len(r.sent[i]); bytes > maxRecentBytes || len(r.sent)-i > maxRecent {
			r.sent = r.sent[i+1:]
			break
		}
	}
}

func (r *recent) unanswered(answered int64) [][]byte {
	if r.answered != answered || time.Since(r.last) > recentFor {
		return nil
	}
	return r.sent
}

// remove forgets an idle flow, unless the client has just sent something.
func (p *Pod) remove(f *flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(f.queue) > 0 {
		return false
	}
	p.ports[f.local.Port()].forget(f)
	return true
}

// answer sends the laptop's datagrams to the client.
func (p *Pod) answer(f *flow, t *tunnel.Conn) error {
	var buffer []byte
	for {
		var err error
		if buffer, err = tunnel.ReadDatagram(t, buffer); errors.Is(err, net.ErrClosed) || err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("receive from the laptop: %w", err)
		}
		f.touch()
		f.answered.Add(1)
		if err := p.sender.send(f.local, f.client, buffer); err != nil {
			p.cfg.Metrics.dropped.Inc()
			p.cfg.Log.Debug("an answer is lost", "error", err)
			continue
		}
		p.cfg.Metrics.toClient.Inc()
	}
}
