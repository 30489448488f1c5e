// SPDX-License-Identifier: Apache-2.0

package plan

import "sidestep.dev/sidestep/api/agentpb"

// Traffic sums up, by the UIDs of the intercepts of a session, what the node agents have counted on
// the ports of their pods. It leaves out intercepts without counts.
func (p *Plan) Traffic(keyHash string) map[string]*agentpb.Traffic {
	p.mu.RLock()
	defer p.mu.RUnlock()
	sums := map[string]*agentpb.Traffic{}
	for _, n := range p.nodes {
		if n.stream == nil {
			continue
		}
		for k := range n.rules {
			t := n.stream.targets[k].traffic
			if t == nil || n.intercepts[k.intercept].keyHash != keyHash {
				continue
			}
			if sums[k.intercept] == nil {
				sums[k.intercept] = &agentpb.Traffic{}
			}
			add(sums[k.intercept], t)
		}
	}
	return sums
}

// Copies sums up, by the UIDs of the wiretaps of a session, what node agents have copied and what
// they have not. Each counts from its own start, or from that of the wiretap.
func (p *Plan) Copies(keyHash string) map[string]*agentpb.Copies {
	p.mu.RLock()
	defer p.mu.RUnlock()
	sums := map[string]*agentpb.Copies{}
	for _, n := range p.nodes {
		if n.stream == nil {
			continue
		}
		for k := range n.rules {
			c := n.stream.targets[k].copies
			if c == nil || n.intercepts[k.intercept].keyHash != keyHash {
				continue
			}
			if sums[k.intercept] == nil {
				sums[k.intercept] = &agentpb.Copies{}
			}
			sum := sums[k.intercept]
			sum.Copied += c.GetCopied()
			sum.Cut += c.GetCut()
			sum.Dropped += c.GetDropped()
		}
	}
	return sums
}

func add(sum, t *agentpb.Traffic) {
	sum.Opened += t.GetOpened()
	sum.Closed += t.GetClosed()
	sum.Aborted += t.GetAborted()
	sum.ReceivedBytes += t.GetReceivedBytes()
	sum.SentBytes += t.GetSentBytes()
	sum.RetransmittedSegments += t.GetRetransmittedSegments()
	sum.RttSamples += t.GetRttSamples()
	sum.RttSumUs += t.GetRttSumUs()
}
