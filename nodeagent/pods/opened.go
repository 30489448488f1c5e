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
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// opened is what the agent has open in the network namespace of one pod.
type opened struct {
	pod       *pod
	at        *part.Pod // what the parts know of it
	parts     []part.Part
	listeners []*listener
	cancel    context.CancelFunc // of at.Context: resets the connections
	serving   sync.WaitGroup     // accept loops and connections
	expected  expectations

	mu      sync.Mutex
	targets map[uint16]*proxy.Target // by port, also those that are not steered any longer

	// Used by the pod's run alone.
	steered  map[uint16]bool
	barred   map[part.Target]bool // kept from being steered by a Guard at the last apply
	attached bool
	drained  time.Time // when new connections were given to the app
}

// listener is a listener with what is known about its accept loop.
type listener struct {
	*net.TCPListener
	// since when the loop has not been waiting for a connection, Unix nanoseconds; 0 while it waits
	busy atomic.Int64
}

// openPod opens listeners for the families of the pod's addresses, a program that knows them, and the
// parts. Nothing is steered yet.
func openPod(p *pod, ns *podnet.Namespace, ips []netip.Addr, hostNetwork bool) (_ *opened, err error) {
	program, err := p.set.cfg.Steering.Load()
	if err != nil {
		return nil, err
	}
	o := &opened{pod: p, targets: map[uint16]*proxy.Target{}, steered: map[uint16]bool{}}
	o.at = &part.Pod{
		UID: p.uid, Name: p.name, IPs: ips, HostNetwork: hostNetwork, Namespace: ns, Program: program,
		Processes:  func() []string { return p.set.cfg.Finder.Processes(p.uid, ns.ID()) },
		Match:      func(port uint16, head match.Head) string { return o.target(port).Match(head) },
		Changed:    p.set.notify,
		Superseded: p.set.superseded.is,
		Go:         o.serving.Go, Log: p.log,
	}
	for _, ip := range ips {
		o.at.Addresses = append(o.at.Addresses, part.Address{Addr: ip})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.closeListeners(), program.Close())
		}
	}()
	if !hostNetwork { // there the kubelet is, and what comes from the node's router is from others
		if o.at.Probers, err = ns.Gateways(); err != nil {
			return nil, err
		}
	}
	if err := o.listen(); err != nil {
		return nil, err
	}
	o.at.Context, o.cancel = context.WithCancel(p.set.ctx)
	for _, kind := range p.set.cfg.Parts {
		switch one, err := kind.Open(o.at); {
		case err != nil:
			p.log.Warn("pod is steered without one of its parts", "error", err)
		case one != nil:
			o.parts = append(o.parts, one)
		}
	}
	for _, l := range o.listeners {
		o.serving.Go(func() { o.accept(l) })
	}
	return o, nil
}

// listen listens on the loopback addresses, which makes nothing reachable from outside that was not
// before.
func (o *opened) listen() error {
	for _, home := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		if !slices.ContainsFunc(o.at.IPs, func(ip netip.Addr) bool { return ip.Is4() == home.Is4() }) {
			continue
		}
		l, err := o.at.Namespace.Listen(home)
		if err != nil {
			return err
		}
		o.listeners = append(o.listeners, &listener{TCPListener: l})
		o.at.Listeners = append(o.at.Listeners, l)
		if err := o.at.Program.SetListener(l); err != nil {
			return err
		}
	}
	return nil
}

// apply brings rules into force and steers what is to be steered. It returns why rules are rejected;
// the others are in force all the same.
func (o *opened) apply(want *agentpb.Pod) (rejected map[check]string, err error) {
	o.barred = o.barredOf(want)
	want = without(want, o.barred)
	rejected = map[check]string{}
	wanted := map[uint16]bool{}
	for _, t := range want.GetTargets() {
		port := uint16(t.GetPort())
		wanted[port] = true
		o.target(port).SetRules(rulesOf(t, rejected), kubeletOf(t, want.GetHostIps(), o.at.Probers))
	}
	var errs []error
	for _, one := range o.parts {
		errs = append(errs, one.Apply(want))
	}
	for port := range wanted {
		errs = append(errs, o.steer(port))
	}
	for port := range o.steered {
		if !wanted[port] {
			errs = append(errs, o.unsteer(port))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	o.drained = time.Time{}
	return rejected, o.attach()
}

func (o *opened) attach() error {
	if err := o.at.Program.Attach(o.at.Namespace); err != nil {
		return err
	}
	if !o.attached {
		o.attached = true
		o.pod.log.Info("pod is being steered", "netns", o.at.Namespace.Inode(), "ips", o.at.IPs)
	}
	return nil
}

func (o *opened) steer(port uint16) error {
	for _, target := range o.at.Targets(port) {
		if err := o.at.Program.Add(target); err != nil {
			return err
		}
	}
	o.steered[port] = true
	return nil
}

func (o *opened) unsteer(port uint16) error {
	for _, target := range o.at.Targets(port) {
		if err := o.at.Program.Remove(target); err != nil {
			return err
		}
	}
	delete(o.steered, port)
	// What still arrives goes to the app; but during an upgrade the intercept goes on, and so it
	// does on open connections.
	if !o.at.Superseded() {
		o.target(port).SetRules(nil, proxy.Kubelet{})
	}
	return nil
}

// notify tells the parts whether new connections are steered.
func (o *opened) notify(on bool) {
	for _, one := range o.parts {
		if s, ok := one.(part.Steered); ok {
			s.Steered(on)
		}
	}
}

// problem returns what the parts say of an intercept: the gravest problem, or of equals the last.
func (o *opened) problem(at part.Target, r *agentpb.Rule) (worst part.Problem) {
	if why := o.bars(at); why != "" {
		return part.Problem{Message: why, Refuse: true}
	}
	for _, one := range o.parts {
		if p := one.Problem(at, r); p.Message != "" && (p.Refuse || !worst.Refuse) {
			worst = p
		}
	}
	return worst
}

// target is the proxy's side of a port. One without rules passes everything to the app.
func (o *opened) target(port uint16) *proxy.Target {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.targets[port]
	if t == nil {
		t = proxy.NewTarget(o.pod.name, o)
		o.targets[port] = t
	}
	return t
}

// stats is what the proxy has counted for a port.
func (o *opened) stats(port uint16) proxy.Stats {
	o.mu.Lock()
	t := o.targets[port]
	o.mu.Unlock()
	if t == nil {
		return proxy.Stats{}
	}
	return t.Stats()
}

// DialApp begins to connect to the app from its own address, which is never steered.
func (o *opened) DialApp(client, app netip.AddrPort, soon bool) (stream.Socket, func(context.Context) error,
	error) {
	c, err := o.at.Namespace.BeginAs(app.Addr(), app, soon, o.dialing(client))
	switch {
	case err != nil:
		return nil, nil, err
	case c.Pending():
		return c.File, c.Wait, nil
	}
	return c.File, nil, nil
}

// dialing returns what prepares a connection to the app on behalf of a client, if anything does.
func (o *opened) dialing(client netip.AddrPort) (prepare func(fd int) error) {
	for _, one := range o.parts {
		if d, ok := one.(part.Dialer); ok {
			if prepare, decided := d.Dialing(client); decided {
				return prepare
			}
		}
	}
	return nil
}

// drain gives new connections to the app. The listeners stay open.
func (o *opened) drain() error {
	var errs []error
	for port := range o.steered {
		errs = append(errs, o.unsteer(port))
	}
	for _, one := range o.parts {
		errs = append(errs, one.Drain())
	}
	errs = append(errs, o.at.Program.Detach())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	o.attached, o.drained = false, time.Now()
	return nil
}

// finish closes the listeners. What is open is served until it ends, or until the pod is gone.
func (o *opened) finish() {
	if err := o.closeListeners(); err != nil {
		o.pod.log.Warn("a listener could not be closed", "error", err)
	}
	o.pod.set.running.Go(func() {
		ended := make(chan struct{})
		go func() {
			o.serving.Wait()
			close(ended)
		}()
		watch := time.NewTicker(o.pod.set.cfg.WatchEvery)
		defer watch.Stop()
		for {
			select {
			case <-ended:
			case <-o.at.Context.Done():
			case <-watch.C:
				if o.pod.set.cfg.Finder.Alive(o.pod.uid, o.at.Namespace.ID()) {
					continue
				}
			}
			break
		}
		if err := o.abort(); err != nil {
			o.pod.log.Warn("something of the pod could not be closed", "error", err)
		}
	})
}

// abort closes everything and resets what is open. An open socket would keep the pod's namespace
// alive.
func (o *opened) abort() error {
	var errs []error
	for _, one := range o.parts {
		errs = append(errs, one.Drain())
	}
	errs = append(errs, o.at.Program.Detach(), o.closeListeners())
	o.cancel()
	o.serving.Wait()
	for _, one := range o.parts {
		errs = append(errs, one.Close())
	}
	return errors.Join(append(errs, o.at.Program.Close(), o.at.Namespace.Close())...)
}

func (o *opened) closeListeners() error {
	var errs []error
	for _, l := range o.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close listener: %w", err))
		}
	}
	return errors.Join(errs...)
}
