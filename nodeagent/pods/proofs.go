// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

// lastingFailures is how many proofs fail before the failure is reported as one that lasts.
const lastingFailures = 3

// settingUp is what is reported of a rule until it is obeyed as it is now.
const settingUp = "being set up"

// check is what is to be proved of a target: that it is steered or, with an intercept, that the
// intercept's laptop can be reached.
type check struct {
	part.Target
	intercept string // UID
}

// target is a port of a pod as it is wanted.
type target struct {
	*agentpb.Target
	udp bool
}

func (t target) at() part.Target { return part.Target{Port: uint16(t.GetPort()), UDP: t.udp} }

// steered is the check of the target itself.
func (t target) steered() check { return check{Target: t.at()} }

func (t target) check(r *agentpb.Rule) check {
	return check{Target: t.at(), intercept: r.GetInterceptUid()}
}

// laptops are the checks of a target's laptops, those that are not away.
func (t target) laptops() map[check]*agentpb.Rule {
	all := map[check]*agentpb.Rule{}
	for _, r := range allRules(t.Target) {
		if r.GetConnected() {
			all[t.check(r)] = r
		}
	}
	return all
}

// targets are all targets of a pod.
func targets(want *agentpb.Pod) []target {
	var all []target
	for _, t := range want.GetTargets() {
		all = append(all, target{t, false})
	}
	for _, t := range want.GetUdpTargets() {
		all = append(all, target{t, true})
	}
	return all
}

// proofs are the results of the checks of a pod.
type proofs struct {
	altered  map[check]bool   // rules that are not yet obeyed as they are now
	rejected map[check]string // rules that cannot be obeyed
	results  map[check]string // of the last probe, empty if it was good
	pending  map[check]bool   // probes on their way
	failures int              // rounds in which some probe failed, since the last without
}

// keep forgets what is no longer wanted, and what was proved about laptops that have been away
// since.
func (s *proofs) keep(want *agentpb.Pod, rejected map[check]string) {
	results := map[check]string{}
	for _, t := range targets(want) {
		for c := range t.laptops() {
			if result, ok := s.results[c]; ok {
				results[c] = result
			}
		}
		if result, ok := s.results[t.steered()]; ok {
			results[t.steered()] = result
		}
	}
	s.results, s.rejected, s.failures = results, rejected, 0
	if s.pending == nil {
		s.pending = map[check]bool{}
	}
}

// change notes which rules are not what they were.
func (s *proofs) change(from, to *agentpb.Pod) {
	before := map[check]*agentpb.Rule{}
	for _, at := range targets(from) {
		for _, r := range allRules(at.Target) {
			before[at.check(r)] = r
		}
	}
	for _, at := range targets(to) {
		for _, r := range allRules(at.Target) {
			c := at.check(r)
			if b, ok := before[c]; ok && !proto.Equal(b, r) {
				if s.altered == nil {
					s.altered = map[check]bool{}
				}
				s.altered[c] = true
			}
		}
	}
}

// verdict returns whether a rule works, or why not and whether that is likely to stay.
func (s *proofs) verdict(at target, r *agentpb.Rule) (steering, failed bool, message string) {
	c := at.check(r)
	if s.altered[c] {
		return false, false, settingUp
	}
	if why, ok := s.rejected[c]; ok {
		return false, true, why
	}
	needs := []check{at.steered()}
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

// prove starts the proofs that are due: at once what has not been proved yet, and everything if
// that was asked for; from time to time what has failed, and some of the rest in turn. A result
// stands until the next one of its kind.
func (p *pod) prove(want *agentpb.Pod) {
	p.mu.Lock()
	now, failures := p.due, p.proofs.failures
	p.due = due{}
	p.mu.Unlock()
	every := p.set.cfg.ProbeEvery
	if failures > 0 {
		every = min(every, time.Duration(failures)*p.set.cfg.WatchEvery)
	}
	round := now.all || time.Since(p.probed) >= every
	if !round && !now.fresh {
		return
	}
	o := p.opened
	o.notify(true)
	var all []proof
	for _, t := range targets(want) {
		if !o.barred[t.at()] {
			all = append(all, proof{t.steered(), func() error { return o.proveSteered(t.at()) }})
		}
		for c, r := range t.laptops() {
			all = append(all, proof{c, func() error { return o.proveLaptop(t.at(), r) }})
		}
	}
	if round {
		p.probed = time.Now()
	}
	for _, f := range p.choose(all, round, now.all) {
		p.try(o, f)
	}
}

// proof is how a check is made.
type proof struct {
	check
	try func() error
}

// inTurn is how many checks that have succeeded are repeated in one round, so that a
// pod with very many of them costs no more at rest than one with a few.
const inTurn = 8

// choose takes of the proofs those that have no result or a bad one, those whose turn it is, and
// all if asked.
func (p *pod) choose(proofs []proof, round, asked bool) []proof {
	slices.SortFunc(proofs, func(a, b proof) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.intercept, b.intercept))
	})
	var chosen, rest []proof
	p.mu.Lock()
	for _, f := range proofs {
		if why, known := p.proofs.results[f.check]; asked || !known || why != "" {
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

// try makes one proof in the background, unless the same one is on its way.
func (p *pod) try(o *opened, f proof) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proofs.pending[f.check] {
		return
	}
	p.proofs.pending[f.check] = true
	p.set.running.Go(func() {
		why := ""
		if err := f.try(); err != nil {
			why = err.Error()
		}
		p.learn(o, f.check, why)
	})
}

func (p *pod) learn(o *opened, c check, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened != o || !p.proofs.pending[c] {
		return // what it was about is gone
	}
	delete(p.proofs.pending, c)
	if !p.needs(c) {
		return
	}
	if p.proofs.learn(c, why) {
		p.set.notify()
		if why != "" {
			p.log.Warn("probe", "port", c.Port, "udp", c.UDP, "intercept", c.intercept, "error", why)
		}
	}
}

// learn notes a result. It reports whether that is news.
func (s *proofs) learn(c check, why string) (news bool) {
	before, known := s.results[c]
	s.results[c] = why
	if why == "" && len(s.pending) == 0 && !s.failing() {
		s.failures = 0
	}
	if why != "" {
		s.failures++
	}
	return !known || before != why || s.failures == lastingFailures
}

// needs reports whether there is still something to prove. p.mu must be held.
func (p *pod) needs(c check) bool {
	for _, t := range targets(p.wanted) {
		if t.at() == c.Target && (c.intercept == "" || t.laptops()[c] != nil) {
			return true
		}
	}
	return false
}

func (s *proofs) failing() bool {
	for _, why := range s.results {
		if why != "" {
			return true
		}
	}
	return false
}
