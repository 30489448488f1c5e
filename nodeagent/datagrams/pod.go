// SPDX-License-Identifier: Apache-2.0

// Package datagrams passes datagrams that are steered away from an app to the laptop of the
// intercept that has their port. It sends the laptop's answers to the clients, from the address to
// which they had sent.
//
// What a client sends to one port is a flow, and has its own tunnel. A laptop that cannot take a
// flow leaves it to the app, with every datagram that was kept until the laptop had answered. So do
// all flows of the port for a moment after that, because its steering pauses.
package datagrams

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Tunnels opens tunnels to laptops; see proxy.Tunnels.
type Tunnels interface {
	Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error)
}

// Steering decides which datagrams arrive here. Its methods may be called concurrently.
type Steering interface {
	SetDatagrams(*net.UDPConn) error
	AddDatagrams(netip.AddrPort) error
	RemoveDatagrams(netip.AddrPort) error
	// DatagramsProbed returns the number of datagrams that arrived here from a loopback address.
	DatagramsProbed() (uint64, error)
}

// Config is what a Pod needs.
type Config struct {
	Name     string // namespace/name
	IPs      []netip.Addr
	Steering Steering
	Tunnels  Tunnels
	Metrics  *Metrics
	Log      *slog.Logger

	// OpenTimeout is how long a laptop may take to answer before the app gets what was sent.
	// Default 2 s.
	OpenTimeout time.Duration
	// Idle is how long a flow without datagrams lasts. IdleOnce is the same for a client that has
	// sent only one datagram: resolvers ask one question from each port. Defaults 60 s and 10 s.
	Idle, IdleOnce time.Duration
	// Pause is how long the app gets everything after the laptop could not take a flow. Default 1
	// s.
	Pause time.Duration
	// MaxFlows bounds the flows of a port. A new flow beyond it replaces the one that was idle
	// longest. Default 4,096.
	MaxFlows int
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value   *time.Duration
		instead time.Duration
	}{{&c.OpenTimeout, 2 * time.Second}, {&c.Idle, time.Minute}, {&c.IdleOnce, 10 * time.Second},
		{&c.Pause, time.Second}} {
		if *d.value <= 0 {
			*d.value = d.instead
		}
	}
	if c.MaxFlows <= 0 {
		c.MaxFlows = 4096
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	return c
}

// Rule is the intercept that has a port.
type Rule struct {
	InterceptUID, Namespace, Name string
	// Connected is false while the laptop is away. The app then gets everything.
	Connected bool
}

// Stats are the counters of a port.
type Stats struct {
	Flows     uint64 // since the rule came
	Matched   uint64 // of these, those that a laptop took
	Fallbacks uint64 // those that the app got because the laptop could not take them
}

// Pod is the steered UDP ports of one pod.
type Pod struct {
	cfg     Config
	sockets []*net.UDPConn
	sender  *sender
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	queued  atomic.Int64 // bytes that wait in flows
	probing sync.Mutex

	mu    sync.Mutex
	ports map[uint16]*port
}

// port is one steered port. Its fields are guarded by Pod.mu.
type port struct {
	rule    *Rule // nil: the app gets everything
	steered bool
	paused  time.Time // until when the app gets everything
	flows   map[flowKey]*flow
	recent  *list.List // *flow, the most recently used in front
	stats   Stats
	logged  time.Time
}

// Open opens what a pod needs in its namespace. It steers nothing yet.
func Open(ns *netns.Namespace, cfg Config) (_ *Pod, err error) {
	p := &Pod{cfg: cfg.withDefaults(), ports: map[uint16]*port{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	four := slices.ContainsFunc(cfg.IPs, netip.Addr.Is4)
	six := slices.ContainsFunc(cfg.IPs, netip.Addr.Is6)
	if p.sender, err = openSender(ns, four, six); err != nil {
		return nil, err
	}
	for home, wanted := range map[netip.Addr]bool{netip.AddrFrom4([4]byte{127, 0, 0, 1}): four,
		netip.IPv6Loopback(): six} {
		if !wanted {
			continue
		}
		c, err := listen(ns, home)
		if err != nil {
			return nil, err
		}
		p.sockets = append(p.sockets, c)
		if err := p.cfg.Steering.SetDatagrams(c); err != nil {
			return nil, err
		}
	}
	for _, c := range p.sockets {
		p.running.Go(func() { p.receive(c) })
	}
	return p, nil
}

// SetRules sets which intercepts have which ports. All other ports are left to the app, and their
// flows end.
func (p *Pod) SetRules(rules map[uint16]*Rule) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for number := range rules {
		if p.ports[number] == nil {
			p.ports[number] = &port{flows: map[flowKey]*flow{}, recent: list.New()}
		}
	}
	for number, at := range p.ports {
		errs = append(errs, p.setRule(number, at, rules[number]))
	}
	return errors.Join(errs...)
}

func (p *Pod) setRule(number uint16, at *port, rule *Rule) error {
	if rule == nil || at.rule != nil && at.rule.InterceptUID != rule.InterceptUID {
		at.stats = Stats{}
		for _, f := range at.flows {
			f.cancel()
		}
	}
	at.rule = rule
	return p.adjust(number, at)
}

// adjust steers a port or leaves it to the app, as its rule says. p.mu must be held.
func (p *Pod) adjust(number uint16, at *port) error {
	steer := at.rule != nil && at.rule.Connected && time.Now().After(at.paused) && p.ctx.Err() == nil
	if steer == at.steered {
		return nil
	}
	change := p.cfg.Steering.RemoveDatagrams
	if steer {
		change = p.cfg.Steering.AddDatagrams
	}
	var errs []error
	for _, ip := range p.cfg.IPs {
		errs = append(errs, change(netip.AddrPortFrom(ip, number)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	at.steered = steer
	return nil
}

// pause leaves a port to the app for a while. p.mu must be held.
func (p *Pod) pause(number uint16, at *port) {
	at.paused = time.Now().Add(p.cfg.Pause)
	if err := p.adjust(number, at); err != nil {
		p.cfg.Log.Warn("datagrams cannot be left to the app", "port", number, "error", err)
	}
	if p.ctx.Err() != nil {
		return
	}
	time.AfterFunc(p.cfg.Pause+time.Millisecond, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if err := p.adjust(number, at); err != nil {
			p.cfg.Log.Warn("datagrams are not steered again", "port", number, "error", err)
		}
	})
}

// Stats returns the counters of a port.
func (p *Pod) Stats(number uint16) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := p.ports[number]; at != nil {
		return at.stats
	}
	return Stats{}
}

// Prove sends a datagram with a wrong checksum, which no socket receives, to each address of the
// pod, and checks that it is steered here. While the port is left to the app, there is nothing to
// prove.
func (p *Pod) Prove(number uint16) error {
	p.probing.Lock()
	defer p.probing.Unlock()
	for _, ip := range p.cfg.IPs {
		home := netip.IPv6Loopback()
		if ip.Is4() {
			home = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		to := netip.AddrPortFrom(ip, number)
		before, err := p.cfg.Steering.DatagramsProbed()
		if err != nil {
			return err
		}
		if !p.isSteered(number) {
			return nil
		}
		if err := p.sender.sendBroken(netip.AddrPortFrom(home, 9), to); err != nil { // 9: discard (RFC 863)
			return fmt.Errorf("see whether datagrams to %s are steered: %w", to, err)
		}
		// The datagram has been delivered before the call returns, unless the machine is so busy
		// that the kernel defers it.
		for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
			after, err := p.cfg.Steering.DatagramsProbed()
			if err != nil {
				return err
			}
			if after != before {
				break
			}
			if !p.isSteered(number) {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("datagrams to %s are not steered: a probe came out at the app, which cannot have seen it", to)
			}
		}
	}
	return nil
}

func (p *Pod) isSteered(number uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.ports[number]
	return at != nil && at.steered
}

// Close leaves all ports to the app and ends all flows.
func (p *Pod) Close() error {
	p.mu.Lock()
	p.cancel()
	var errs []error
	for number, at := range p.ports {
		errs = append(errs, p.adjust(number, at))
	}
	p.mu.Unlock()
	for _, c := range p.sockets {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.running.Wait()
	if p.sender != nil {
		errs = append(errs, p.sender.close())
	}
	return errors.Join(errs...)
}
