// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
)

const (
	datapathPatience = time.Second     // nothing but this machine takes part
	tunnelPatience   = 5 * time.Second // to the laptop and back
	lastingFailures  = 3               // failed probes after which the failure is reported as one that lasts
)

// claim is an intercept's hold on a port; without intercept it is the datapath of the port.
type claim struct {
	port      uint16
	udp       bool
	intercept string
}

// spot is one steered port as it is wanted.
type spot struct {
	*agentpb.Target
	udp bool
}

func (s spot) port() uint16 { return uint16(s.GetPort()) }

// datapath is the claim without intercept.
func (s spot) datapath() claim { return claim{port: s.port(), udp: s.udp} }

func (s spot) claim(r *agentpb.Rule) claim {
	return claim{port: s.port(), udp: s.udp, intercept: r.GetInterceptUid()}
}

// spots are all ports of a pod that are to be steered.
func spots(want *agentpb.Pod) []spot {
	var all []spot
	for _, t := range want.GetTargets() {
		all = append(all, spot{t, false})
	}
	for _, t := range want.GetUdpTargets() {
		all = append(all, spot{t, true})
	}
	return all
}

// status is what is known about the ports and claims of a pod.
type status struct {
	altered  map[claim]bool   // rules that are not yet obeyed as they are now
	rejected map[claim]string // rules that cannot be obeyed
	results  map[claim]string // of the last probe, empty if it was good
	pending  map[claim]bool   // probes on their way
	failures int              // rounds in which some probe failed, since the last without
}

// keep forgets what is no longer wanted, and what was proved about laptops that have been away
// since.
func (s *status) keep(want *agentpb.Pod, rejected map[claim]string) {
	results := map[claim]string{}
	for _, t := range spots(want) {
		for c := range t.claims() {
			if result, ok := s.results[c]; ok {
				results[c] = result
			}
		}
		if result, ok := s.results[t.datapath()]; ok {
			results[t.datapath()] = result
		}
	}
	s.results, s.rejected, s.failures = results, rejected, 0
	if s.pending == nil {
		s.pending = map[claim]bool{}
	}
}

// claims is what has to be proved through tunnels.
func (s spot) claims() map[claim]*agentpb.Rule {
	cs := map[claim]*agentpb.Rule{}
	for _, r := range allRules(s.Target) {
		if r.GetConnected() {
			cs[s.claim(r)] = r
		}
	}
	return cs
}

// change notes which rules are not what they were.
func (s *status) change(from, to *agentpb.Pod) {
	before := map[claim]*agentpb.Rule{}
	for _, at := range spots(from) {
		for _, r := range allRules(at.Target) {
			before[at.claim(r)] = r
		}
	}
	for _, at := range spots(to) {
		for _, r := range allRules(at.Target) {
			c := at.claim(r)
			if b, ok := before[c]; ok && !proto.Equal(b, r) {
				if s.altered == nil {
					s.altered = map[claim]bool{}
				}
				s.altered[c] = true
			}
		}
	}
}

// verdict says whether a rule works, or why not and whether that is likely to stay.
func (s *status) verdict(at spot, r *agentpb.Rule) (steering, failed bool, message string) {
	c := at.claim(r)
	if s.altered[c] {
		return false, false, "being set up"
	}
	if why, ok := s.rejected[c]; ok {
		return false, true, why
	}
	needs := []claim{at.datapath()}
	if r.GetConnected() {
		needs = append(needs, c)
	}
	for _, c := range needs {
		if why, ok := s.results[c]; !ok {
			return false, false, "being probed"
		} else if why != "" {
			return false, s.failures >= lastingFailures, why
		}
	}
	return true, false, ""
}

// report is the state of all the pod's rules.
func (p *pod) report() []*agentpb.TargetReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var reports []*agentpb.TargetReport
	for _, t := range spots(p.desired) {
		port := t.port()
		for i, r := range allRules(t.Target) {
			wiretap := i >= len(t.GetRules())
			var idle string
			tr := &agentpb.TargetReport{PodUid: p.uid, Port: t.GetPort(),
				InterceptUid: r.GetInterceptUid(), Message: p.problem, Failed: p.lasting}
			if t.udp {
				p.reportDatagrams(tr, t, r)
				reports = append(reports, tr)
				continue
			}
			if p.site != nil {
				stats := p.site.stats(port)
				counted := stats.Intercepts[r.GetInterceptUid()]
				idle = stats.Idle(r.GetTcp())
				tr.Connections, tr.Matched, tr.Fallbacks = stats.Connections, counted.Matched, counted.Fallbacks
				tr.Traffic = p.site.trafficReport(port)
				if c := counted.Copies; wiretap {
					tr.Copies = &agentpb.Copies{Copied: c.Copied, Cut: c.Cut, Dropped: c.Dropped}
				}
			}
			if p.problem == "" {
				tr.Steering, tr.Failed, tr.Message = p.status.verdict(t, r)
				if tr.Steering && p.site != nil {
					tr.Message = idle
					if why := p.olderProblem(port, r); why != "" && !wiretap {
						tr.Message = why
					}
					if why := p.site.mesh.olderProblem(port); why != "" {
						tr.Message = why
					}
					if why, all := p.site.mesh.problem(); why != "" {
						tr.Steering, tr.Failed, tr.Message = !all, all, why
					}
				}
			}
			reports = append(reports, tr)
		}
	}
	return reports
}

// probe starts the probes that are due: at once what has not been proved yet, and everything if
// that was asked for; from time to time what has failed, and some of the rest in turn. A result
// stands until the next one of its kind.
func (p *pod) probe(want *agentpb.Pod) {
	p.mu.Lock()
	asked, fresh, failures := p.asked, p.fresh, p.status.failures
	p.asked, p.fresh = false, false
	p.mu.Unlock()
	every := p.set.cfg.ProbeEvery
	if failures > 0 {
		every = min(every, time.Duration(failures)*p.set.cfg.WatchEvery)
	}
	due := asked || time.Since(p.probed) >= every
	if !due && !fresh {
		return
	}
	s := p.site
	s.lookForMesh()
	var proofs []proof
	for _, t := range spots(want) {
		datapath := s.proveDatapath
		if t.udp {
			datapath = s.proveDatagrams
		}
		proofs = append(proofs, proof{t.datapath(), func() error { return datapath(t.port()) }})
		for c, r := range t.claims() {
			proofs = append(proofs, proof{c, func() error { return s.proveTunnel(t.port(), r) }})
		}
	}
	if due {
		p.probed = time.Now()
	}
	for _, f := range p.choose(proofs, due, asked) {
		p.prove(s, f.claim, f.try)
	}
}

// proof is a way to prove a claim.
type proof struct {
	claim
	try func() error
}

// inTurn is how many claims that have been proved before are proved again in one round, so that a
// pod with very many of them costs no more at rest than one with a few.
const inTurn = 8

// choose takes of the proofs those that have no result or a bad one, those whose turn it is, and
// all if asked.
func (p *pod) choose(proofs []proof, round, asked bool) []proof {
	slices.SortFunc(proofs, func(a, b proof) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.intercept, b.intercept))
	})
	var chosen, rest []proof
	p.mu.Lock()
	for _, f := range proofs {
		if why, known := p.status.results[f.claim]; asked || !known || why != "" {
			chosen = append(chosen, f)
		} else {
			rest = append(rest, f)
		}
	}
	p.mu.Unlock()
	if !round {
		return chosen
	}
	for range min(inTurn, len(rest)) {
		p.turn++
		chosen = append(chosen, rest[p.turn%len(rest)])
	}
	return chosen
}

// prove makes one probe in the background, unless the same one is on its way.
func (p *pod) prove(s *site, c claim, try func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.pending[c] {
		return
	}
	p.status.pending[c] = true
	p.set.running.Go(func() {
		why := ""
		if err := try(); err != nil {
			why = err.Error()
		}
		p.learn(s, c, why)
	})
}

func (p *pod) learn(s *site, c claim, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.site != s {
		return // what it was about is gone
	}
	delete(p.status.pending, c)
	if !p.claimed(c) {
		return
	}
	before, known := p.status.results[c]
	p.status.results[c] = why
	if why == "" && len(p.status.pending) == 0 && !p.status.failing() {
		p.status.failures = 0
	}
	if why != "" {
		p.status.failures++
	}
	if !known || before != why || p.status.failures == lastingFailures {
		p.set.notify()
		if why != "" {
			p.log.Warn("probe", "port", c.port, "udp", c.udp, "intercept", c.intercept, "error", why)
		}
	}
}

// claimed says whether there is still something to prove. p.mu must be held.
func (p *pod) claimed(c claim) bool {
	for _, t := range spots(p.desired) {
		if t.port() == c.port && t.udp == c.udp && (c.intercept == "" || t.claims()[c] != nil) {
			return true
		}
	}
	return false
}

func (s *status) failing() bool {
	for _, why := range s.results {
		if why != "" {
			return true
		}
	}
	return false
}

// proveDatapath connects to each address of the pod from its loopback address, as a mesh's proxy in
// the pod would, and sees whether the connection comes out at one of the listeners.
func (s *site) proveDatapath(port uint16) error {
	ctx, cancel := context.WithTimeout(s.ctx, datapathPatience)
	defer cancel()
	for _, ip := range s.ips {
		to := netip.AddrPortFrom(ip, port)
		if err := s.connects(ctx, to); err != nil {
			return fmt.Errorf("new connections to %s are not steered: %w", to, err)
		}
	}
	return nil
}

func (s *site) connects(ctx context.Context, to netip.AddrPort) error {
	home := netip.IPv6Loopback()
	if to.Addr().Is4() {
		home = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	arrived := make(chan struct{})
	var from netip.AddrPort
	c, err := s.ns.Dial(ctx, home, to, func(local netip.AddrPort) {
		from = local
		s.expected.add(from, arrived)
	})
	defer s.expected.remove(from)
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

// proveTunnel opens a tunnel that the laptop's daemon answers without troubling the local process.
func (s *site) proveTunnel(port uint16, r *agentpb.Rule) error {
	ctx, cancel := context.WithTimeout(s.ctx, tunnelPatience)
	defer cancel()
	c, err := s.pod.set.cfg.Tunnels.Open(ctx, &tunnelpb.Open{
		InterceptUid: r.GetInterceptUid(), InterceptNamespace: r.GetInterceptNamespace(),
		InterceptName: r.GetInterceptName(),
		LocalAddr:     netip.AddrPortFrom(s.ips[0], port).String(), Pod: s.pod.name, Probe: true,
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
