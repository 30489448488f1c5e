// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/datagrams"
)

// relay is what relays the datagrams of the pod, or nil.
func (s *site) relay() *datagrams.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.datagrams
}

// applyDatagrams steers the UDP ports that are to be. Where that cannot be, the reason goes to the
// rules, and TCP ports are steered all the same.
func (s *site) applyDatagrams(want *agentpb.Pod, rejected map[claim]string) error {
	relay := s.relay()
	if len(want.GetUdpTargets()) > 0 && relay == nil {
		var err error
		if relay, err = s.openDatagrams(); err != nil {
			for _, t := range want.GetUdpTargets() {
				for _, r := range t.GetRules() {
					rejected[spot{t, true}.claim(r)] = err.Error()
				}
			}
			return nil
		}
	}
	if relay == nil {
		return nil
	}
	wanted := map[uint16]*datagrams.Rule{}
	for _, t := range want.GetUdpTargets() {
		for _, r := range t.GetRules() {
			wanted[uint16(t.GetPort())] = &datagrams.Rule{
				InterceptUID: r.GetInterceptUid(), Namespace: r.GetInterceptNamespace(),
				Name: r.GetInterceptName(), Connected: r.GetConnected(),
			}
		}
	}
	return relay.SetRules(wanted)
}

func (s *site) openDatagrams() (*datagrams.Pod, error) {
	if err := s.program.Datagrams(); err != nil {
		return nil, err
	}
	relay, err := datagrams.Open(s.ns, datagrams.Config{
		Name: s.pod.name, IPs: s.ips, Steering: s.program, Tunnels: s.pod.set.cfg.Tunnels,
		Metrics: s.pod.set.cfg.Datagrams, Log: s.pod.log,
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.datagrams = relay
	return relay, nil
}

// releaseDatagrams leaves all UDP ports to the app. If a younger agent steers the pod, the answers
// that are on their way still arrive.
func (s *site) releaseDatagrams() error {
	relay := s.relay()
	if relay == nil || isClosed(s.pod.set.Superseded()) {
		return nil
	}
	return relay.SetRules(map[uint16]*datagrams.Rule{})
}

func (s *site) closeDatagrams() error {
	s.mu.Lock()
	relay := s.datagrams
	s.datagrams = nil
	s.mu.Unlock()
	if relay == nil {
		return nil
	}
	return relay.Close()
}

// proveDatagrams sees whether datagrams to a port are steered.
func (s *site) proveDatagrams(port uint16) error {
	relay := s.relay()
	if relay == nil {
		return nil
	}
	return relay.Prove(port)
}

// reportDatagrams fills in what is to be told about a UDP port. p.mu must be held.
func (p *pod) reportDatagrams(tr *agentpb.TargetReport, t spot, r *agentpb.Rule) {
	if p.site == nil {
		return
	}
	if relay := p.site.relay(); relay != nil {
		counted := relay.Stats(t.port())
		tr.Connections, tr.Matched, tr.Fallbacks = counted.Flows, counted.Matched, counted.Fallbacks
	}
	if p.problem == "" {
		tr.Steering, tr.Failed, tr.Message = p.status.verdict(t, r)
	}
}
