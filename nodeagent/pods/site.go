// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/datagrams"
	"sidestep.dev/sidestep/nodeagent/mesh"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// site is what the agent has open in the network namespace of one pod.
type site struct {
	pod      *pod
	ns       Namespace
	ips      []netip.Addr
	gateways []netip.Addr // the node, as the pod sees it
	program  Program
	doors    []*door
	ctx      context.Context // of the connections: its end resets them
	cancel   context.CancelFunc
	serving  sync.WaitGroup // accept loops and connections
	expected expectations

	datagrams *datagrams.Pod // nil until a UDP port is to be steered; guarded by mu

	clientele   clientele
	mesh        meshProxy
	counter     Counter // nil if connections are not counted
	hostNetwork bool    // the namespace is the node's

	mu      sync.Mutex
	targets map[uint16]*proxy.Target // by port, also those that are not steered any longer
	// Why the connections from before are left alone, by port.
	olderProblems map[uint16]string

	// Used by the pod's run alone.
	steered  map[uint16]bool
	attached bool
	older    map[uint16]Older // what deals with connections from before, by port
	// What they deal with, by port, where that has succeeded.
	lookedBack map[uint16]*agentpb.Target
	released   time.Time // when the last target was removed
}

// door is one listener with what is known about its accept loop.
type door struct {
	*net.TCPListener
	// since when the loop has not been waiting for a connection, Unix nanoseconds; 0 while it waits
	busy atomic.Int64
}

// openSite opens listeners for the families of the pod's addresses, and a program that knows them.
// Nothing is steered yet.
func openSite(p *pod, ns Namespace, ips []netip.Addr, hostNetwork bool) (_ *site, err error) {
	program, err := p.set.cfg.Steering.Load()
	if err != nil {
		return nil, err
	}
	gateways, err := ns.Gateways()
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	if hostNetwork {
		gateways = nil // the kubelet is here: what comes from its node's router is from others
	}
	s := &site{
		hostNetwork: hostNetwork,
		pod:         p, ns: ns, ips: ips, gateways: gateways, program: program,
		targets: map[uint16]*proxy.Target{}, steered: map[uint16]bool{},
		older: map[uint16]Older{}, lookedBack: map[uint16]*agentpb.Target{}, olderProblems: map[uint16]string{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeDoors(), program.Close())
		}
	}()
	for _, home := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		// Listening on the loopback address makes nothing reachable from outside that was not
		// before.
		if !slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Is4() == home.Is4() }) {
			continue
		}
		l, err := ns.Listen(home)
		if err != nil {
			return nil, err
		}
		s.doors = append(s.doors, &door{TCPListener: l})
		if err := program.SetListener(l); err != nil {
			return nil, err
		}
	}
	s.meetClients()
	s.meetMesh()
	s.startCounting()
	s.ctx, s.cancel = context.WithCancel(p.set.ctx)
	for _, d := range s.doors {
		s.serving.Go(func() { s.accept(d) })
	}
	return s, nil
}

// apply brings rules into force and steers what is to be steered. It gives the reason for each
// rule, by intercept UID and port, that cannot be obeyed; the others are in force all the same.
func (s *site) apply(want *agentpb.Pod) (rejected map[claim]string, err error) {
	defer func() {
		if err != nil {
			clear(s.lookedBack) // until this succeeds, connections are opened that will be older
		}
	}()
	rejected = map[claim]string{}
	var errs []error
	wanted := map[uint16]bool{}
	for _, t := range want.GetTargets() {
		port := uint16(t.GetPort())
		wanted[port] = true
		rules := rulesOf(t, rejected)
		s.target(port).SetRules(rules, kubeletOf(t, want.GetHostIps(), s.gateways))
		s.lookBack(t, rejected)
		errs = append(errs, s.steer(port))
	}
	for port := range s.steered {
		if !wanted[port] {
			errs = append(errs, s.unsteer(port))
		}
	}
	errs = append(errs, s.applyDatagrams(want, rejected))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.released = time.Time{}
	if err := s.attach(); err != nil {
		return nil, err
	}
	s.olderSteered()
	return rejected, nil
}

func (s *site) attach() error {
	if err := s.program.Attach(s.ns); err != nil {
		return err
	}
	if !s.attached {
		s.attached = true
		s.pod.log.Info("pod is being steered", "netns", s.ns.Inode(), "ips", s.ips)
	}
	return nil
}

func (s *site) steer(port uint16) error {
	for _, target := range s.steerable(port) {
		s.count(target)
		if err := s.program.Add(target); err != nil {
			return err
		}
	}
	s.steered[port] = true
	return nil
}

func (s *site) unsteer(port uint16) error {
	for _, target := range s.steerable(port) {
		if err := s.program.Remove(target); err != nil {
			return err
		}
		s.uncount(target)
	}
	delete(s.steered, port)
	// What still arrives goes to the app; but during an upgrade the intercept goes on, and so it
	// does on open connections.
	if !isClosed(s.pod.set.Superseded()) {
		s.target(port).SetRules(nil, proxy.Kubelet{})
	}
	return s.forgetOlder(port)
}

// target is the proxy's side of a port. One that nobody has claimed passes everything to the app.
func (s *site) target(port uint16) *proxy.Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[port]
	if t == nil {
		t = proxy.NewTarget(s.pod.name, s)
		s.targets[port] = t
	}
	return t
}

// stats is what the proxy has counted for a port.
func (s *site) stats(port uint16) proxy.Stats {
	s.mu.Lock()
	t := s.targets[port]
	s.mu.Unlock()
	if t == nil {
		return proxy.Stats{}
	}
	return t.Stats()
}

// DialApp begins to connect to the app from its own address, which is never steered.
func (s *site) DialApp(client, app netip.AddrPort, soon bool) (stream.Socket,
	func(context.Context) error, error) {
	c, err := s.ns.BeginAs(app.Addr(), app, soon, s.introduce(client))
	switch {
	case err != nil:
		return nil, nil, err
	case c.Pending():
		return c.File, c.Wait, nil
	}
	return c.File, nil, nil
}

// release gives new connections to the app. It says how long the listeners must still be kept.
func (s *site) release(linger time.Duration) (left time.Duration, err error) {
	if s.released.IsZero() {
		var errs []error
		for port := range s.steered {
			errs = append(errs, s.unsteer(port))
		}
		errs = append(errs, s.releaseDatagrams(), s.program.Detach(), s.leaveMesh())
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		s.attached, s.released = false, time.Now()
	}
	return max(0, linger-time.Since(s.released)), nil
}

// lingering says that the last target was removed, and the listeners have not been closed yet.
func (s *site) lingering() bool { return !s.released.IsZero() }

// retire closes the listeners; what is open is served until it ends, or until the pod is gone.
func (s *site) retire() {
	if err := errors.Join(s.closeDoors(), s.closeDatagrams()); err != nil {
		s.pod.log.Warn("a listener could not be closed", "error", err)
	}
	s.pod.set.running.Go(func() {
		drained := make(chan struct{})
		go func() {
			s.serving.Wait()
			close(drained)
		}()
		watch := time.NewTicker(s.pod.set.cfg.WatchEvery)
		defer watch.Stop()
		for {
			select {
			case <-drained:
			case <-s.ctx.Done():
			case <-watch.C:
				if s.pod.set.cfg.Finder.Alive(s.pod.uid, s.ns.ID()) {
					continue
				}
			}
			break
		}
		if err := s.abort(); err != nil {
			s.pod.log.Warn("something of the pod could not be closed", "error", err)
		}
	})
}

// abort closes everything and resets what is open. An open socket would keep the pod's namespace
// alive.
func (s *site) abort() error {
	errs := []error{s.forgetAllOlder(), s.program.Detach(), s.closeDoors(), s.closeDatagrams()}
	s.cancel()
	s.serving.Wait()
	return errors.Join(append(errs, s.leaveMesh(), s.dismissClients(), s.stopCounting(),
		s.program.Close(), s.ns.Close())...)
}

func (s *site) closeDoors() error {
	var errs []error
	for _, d := range s.doors {
		if err := d.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close listener: %w", err))
		}
	}
	return errors.Join(errs...)
}

// allRules are the intercepts of a target, and behind them its wiretaps.
func allRules(t *agentpb.Target) []*agentpb.Rule { return slices.Concat(t.GetRules(), t.GetWiretaps()) }

// rulesOf translates the rules of a target, noting those that cannot be obeyed.
func rulesOf(t *agentpb.Target, rejected map[claim]string) []proxy.Rule {
	var rules []proxy.Rule
	for i, r := range allRules(t) {
		rule := proxy.Rule{
			Wiretap:      i >= len(t.GetRules()),
			InterceptUID: r.GetInterceptUid(), Namespace: r.GetInterceptNamespace(), Name: r.GetInterceptName(),
			TCP: r.GetTcp(), Connected: r.GetConnected(),
		}
		if m := r.GetHttp(); m != nil && !r.GetTcp() {
			var err error
			if rule.HTTP, err = match.FromProto(m); err != nil {
				rejected[claim{port: uint16(t.GetPort()), intercept: r.GetInterceptUid()}] = err.Error()
				continue
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

// kubeletOf tells how to know the kubelet. It dials from whichever of the node's addresses is
// nearest to the pod: with most networks the pod's gateway.
func kubeletOf(t *agentpb.Target, hosts []string, gateways []netip.Addr) proxy.Kubelet {
	k := proxy.Kubelet{HostIPs: slices.Concat(gateways, mesh.Probers)}
	for _, host := range hosts {
		if ip, err := netip.ParseAddr(host); err == nil {
			k.HostIPs = append(k.HostIPs, ip.Unmap())
		}
	}
	for _, probe := range t.GetKubeletProbes() {
		switch probe.GetKind() {
		case "http":
			k.HTTPPaths = append(k.HTTPPaths, probe.GetPath())
		case "tcp":
			k.TCP = true
		case "grpc":
			k.GRPC = true
		}
	}
	return k
}
