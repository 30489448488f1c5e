// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
)

// Answers is how many of the requests that match an intercept the laptop answered, and how many it
// did not. Each node agent counts from its own start, or from that of the rule.
type Answers struct {
	Answered   *uint64 // nil: not counted
	Unanswered map[agentpb.Unanswered_Reason]uint64
}

func (a *Answers) add(answered *uint64, unanswered []*agentpb.Unanswered) {
	if answered != nil {
		sum := *answered
		if a.Answered != nil {
			sum += *a.Answered
		}
		a.Answered = &sum
	}
	for _, u := range unanswered {
		if a.Unanswered == nil {
			a.Unanswered = map[agentpb.Unanswered_Reason]uint64{}
		}
		a.Unanswered[u.GetReason()] += u.GetCount()
	}
}

// Messages returns the counts of unanswered requests in the order of the reasons' numbers.
func (a *Answers) Messages() []*agentpb.Unanswered {
	var all []*agentpb.Unanswered
	for _, reason := range slices.Sorted(maps.Keys(a.Unanswered)) {
		all = append(all, &agentpb.Unanswered{Reason: reason, Count: a.Unanswered[reason]})
	}
	return all
}

// Answers sums up the counts of node agents, by the UIDs of the intercepts of a session. It leaves
// out those without counts.
func (p *Plan) Answers(keyHash string) map[string]*Answers {
	p.mu.RLock()
	defer p.mu.RUnlock()
	sums := map[string]*Answers{}
	for _, n := range p.nodes {
		for k, rule := range n.rules {
			if n.intercepts[k.intercept].keyHash != keyHash {
				continue
			}
			var answered *uint64
			if n.stream != nil {
				answered = n.stream.targets[k].answered
			}
			if answered == nil && len(rule.unanswered) == 0 {
				continue
			}
			if sums[k.intercept] == nil {
				sums[k.intercept] = &Answers{}
			}
			sums[k.intercept].add(answered, rule.unanswered)
		}
	}
	return sums
}

// Unanswered sums up, by reason, the requests of an intercept that its laptop did not answer.
func (p *Plan) Unanswered(uid types.UID) map[agentpb.Unanswered_Reason]uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var sum Answers
	for at := range p.intercepts[uid] {
		if rule := p.nodes[at.node].rules[ruleKey{at.pod, at.port, string(uid)}]; rule != nil {
			sum.add(nil, rule.unanswered)
		}
	}
	return sum.Unanswered
}

func sameUnanswered(a, b []*agentpb.Unanswered) bool {
	return slices.EqualFunc(a, b, func(a, b *agentpb.Unanswered) bool {
		return a.GetReason() == b.GetReason() && a.GetCount() == b.GetCount()
	})
}
