// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

const (
	steeredPatience = time.Second     // nothing but this machine takes part
	laptopPatience  = 5 * time.Second // there and back
)

// proveSteered proves that new connections, or datagrams, to a target come here.
func (o *opened) proveSteered(at part.Target) error {
	if !at.UDP {
		return o.proveTCP(at.Port)
	}
	for _, one := range o.parts {
		if p, ok := one.(part.Prover); ok {
			return p.Prove(at)
		}
	}
	return nil
}

// proveTCP connects to each address of the pod from its loopback address, as a mesh's proxy in
// the pod would, and sees whether the connection comes out at one of the listeners.
func (o *opened) proveTCP(port uint16) error {
	ctx, cancel := context.WithTimeout(o.at.Context, steeredPatience)
	defer cancel()
	for _, ip := range o.at.IPs {
		to := netip.AddrPortFrom(ip, port)
		if err := o.connects(ctx, to); err != nil {
			return fmt.Errorf("new connections to %s are not steered: %w", to, err)
		}
	}
	return nil
}

func (o *opened) connects(ctx context.Context, to netip.AddrPort) error {
	home := netip.IPv6Loopback()
	if to.Addr().Is4() {
		home = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	arrived := make(chan struct{})
	var from netip.AddrPort
	c, err := o.at.Namespace.Dial(ctx, home, to, func(local netip.AddrPort) {
		from = local
		o.expected.add(from, arrived)
	})
	defer o.expected.remove(from)
	if err != nil {
		return err
	}
	defer c.Close()
	select {
	case <-arrived:
		// Nothing has been said, so nothing is lost by a reset. If the pod's addresses go now, a
		// FIN would never be acknowledged, and for two minutes keep the namespace alive.
		_ = c.SetLinger(0)
		return nil
	case <-ctx.Done():
		return errors.New("a probe came out at the app, and was closed without sending anything")
	}
}

// proveLaptop opens a tunnel that the laptop's daemon answers without troubling the local process.
func (o *opened) proveLaptop(at part.Target, r *agentpb.Rule) error {
	ctx, cancel := context.WithTimeout(o.at.Context, laptopPatience)
	defer cancel()
	c, err := o.pod.set.cfg.Tunnels.Open(ctx, &tunnelpb.Open{
		InterceptUid: r.GetInterceptUid(), InterceptNamespace: r.GetInterceptNamespace(),
		InterceptName: r.GetInterceptName(),
		LocalAddr:     netip.AddrPortFrom(o.at.IPs[0], at.Port).String(), Pod: o.pod.name, Probe: true,
	})
	if err != nil {
		return fmt.Errorf("open a tunnel to the laptop: %w", err)
	}
	defer c.Close()
	opened, err := c.Opened(ctx)
	if err != nil {
		return fmt.Errorf("wait for the laptop to answer: %w", err)
	}
	if opened.GetResult() != tunnelpb.Opened_OK {
		return fmt.Errorf("the laptop cannot be reached: %s %s", opened.GetResult(), opened.GetMessage())
	}
	return nil
}
