// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
)

// Stream is one node agent's stream of assignments.
type Stream struct {
	plan  *Plan
	node  string
	birth Birth
	wake  chan struct{}
	gone  chan struct{}

	// guarded by plan.mu
	superseded bool // gone, because a younger agent has attached
	revision   uint64
	reported   bool
	report     uint64 // revision of the last report
	targets    map[ruleKey]verdict
	agent      Agent
}

// verdict is what a node agent reports of one placement.
type verdict struct {
	steering bool
	failed   bool
	message  string
	traffic  *agentpb.Traffic // nil: not counted
	copies   *agentpb.Copies  // nil: nothing is copied
	answered *uint64          // nil: not counted
}

// Birth tells the agents of a node apart.
type Birth struct {
	Boot  string // of the node
	Epoch uint64 // nanoseconds from the boot to the agent's start
	// Wiretaps reports that it supports them.
	Wiretaps bool
	// UDP reports that it can steer UDP ports, or report why not.
	UDP bool
}

// before reports whether other is certainly a younger agent of the same node.
func (b Birth) before(other Birth) bool { return b.Boot == other.Boot && b.Epoch < other.Epoch }

// Attach makes the agent on a node the one that gets the node's assignments. It replaces an earlier
// stream of the node, which is that of an older agent, or a dead connection that was not noticed
// yet. If the earlier stream is a younger agent's, Attach returns nil.
func (p *Plan) Attach(nodeName string, birth Birth) *Stream {
	s := &Stream{plan: p, node: nodeName, birth: birth, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	s.poke()
	p.mu.Lock()
	n := p.nodeOf(nodeName)
	if n.stream != nil && birth.before(n.stream.birth) {
		p.mu.Unlock()
		return nil
	}
	if n.stream != nil {
		n.stream.superseded = n.stream.birth.before(birth)
		close(n.stream.gone)
	} else {
		p.attached++
	}
	n.stream = s
	delete(p.refused, nodeName)
	for _, r := range n.rules {
		r.since = 0
	}
	affected := n.uids()
	p.mu.Unlock()
	p.changes.Add(affected...)
	return s
}

// Refuse remembers why the agent of a node may not attach, and reports whether that is new.
func (p *Plan) Refuse(nodeName, why string) bool {
	p.mu.Lock()
	if p.refused[nodeName] == why {
		p.mu.Unlock()
		return false
	}
	p.refused[nodeName] = why
	var affected []types.UID
	if n := p.nodes[nodeName]; n != nil {
		affected = n.uids()
	}
	p.mu.Unlock()
	p.changes.Add(affected...)
	return true
}

// Refused returns why the agent of a node, if there is one, may not attach.
func (p *Plan) Refused(nodeName string) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.refused[nodeName]
}

// Detach ends a stream and drops its reports.
func (p *Plan) Detach(s *Stream) {
	p.mu.Lock()
	n := p.nodes[s.node]
	if n == nil || n.stream != s {
		p.mu.Unlock()
		return
	}
	n.stream = nil
	p.attached--
	affected := n.uids()
	p.tidy(s.node, n)
	p.mu.Unlock()
	p.changes.Add(affected...)
}

func (n *node) uids() []types.UID {
	uids := make([]types.UID, 0, len(n.intercepts))
	for uid := range n.intercepts {
		uids = append(uids, types.UID(uid))
	}
	return uids
}

func (s *Stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Wake returns a channel that receives a value when there is something new to send.
func (s *Stream) Wake() <-chan struct{} { return s.wake }

// Replaced returns a channel that is closed when another stream of the node has taken over.
func (s *Stream) Replaced() <-chan struct{} { return s.gone }

// Superseded reports whether a younger agent has replaced the stream.
func (s *Stream) Superseded() bool {
	s.plan.mu.RLock()
	defer s.plan.mu.RUnlock()
	return s.superseded
}

// Next returns the assignment that has to be sent now. Its parts are shared and must not be
// changed.
func (s *Stream) Next() *agentpb.Assignment {
	p := s.plan
	p.mu.Lock()
	defer p.mu.Unlock()
	s.revision++
	a := &agentpb.Assignment{Revision: s.revision, Environments: true}
	n := p.nodes[s.node]
	if n == nil || n.stream != s {
		return a
	}
	var udp *agentpb.Target
	keys := slices.SortedFunc(maps.Keys(n.rules), func(a, b ruleKey) int {
		return cmp.Or(strings.Compare(a.pod, b.pod), cmp.Compare(a.port, b.port),
			strings.Compare(a.intercept, b.intercept))
	})
	var pod *agentpb.Pod
	var target *agentpb.Target
	for _, k := range keys {
		r := n.rules[k]
		if r.Wiretap && !s.birth.Wiretaps || r.UDP && !s.birth.UDP {
			continue
		}
		if r.since == 0 {
			r.since = s.revision
		}
		if pod == nil || pod.Uid != k.pod {
			pod, target, udp = withoutTargets(r.Pod), nil, nil
			a.Pods = append(a.Pods, pod)
		}
		if r.UDP {
			if udp == nil || udp.Port != k.port {
				udp = &agentpb.Target{Port: k.port}
				pod.UdpTargets = append(pod.UdpTargets, udp)
			}
			udp.Rules = append(udp.Rules, r.Rule)
			continue
		}
		if target == nil || target.Port != k.port {
			target = &agentpb.Target{Port: k.port, KubeletProbes: r.Probes}
			pod.Targets = append(pod.Targets, target)
		}
		if r.Wiretap {
			target.Wiretaps = append(target.Wiretaps, r.Rule)
		} else {
			target.Rules = append(target.Rules, r.Rule)
		}
	}
	return a
}

// withoutTargets returns a shallow copy, so that the original is not changed.
func withoutTargets(p *agentpb.Pod) *agentpb.Pod {
	return &agentpb.Pod{
		Uid: p.Uid, Namespace: p.Namespace, Name: p.Name, Ips: p.Ips, HostIps: p.HostIps,
		RuntimeClass: p.RuntimeClass, HostNetwork: p.HostNetwork,
	}
}

// Report takes an agent's report, and passes on for which intercepts it makes a difference.
func (s *Stream) Report(r *agentpb.Report) {
	targets := make(map[ruleKey]verdict, len(r.Targets))
	for _, t := range r.Targets {
		targets[ruleKey{t.PodUid, t.Port, t.InterceptUid}] = verdict{t.Steering, t.Failed, t.Message,
			t.Traffic, t.Copies, t.Answered}
	}
	p := s.plan
	p.mu.Lock()
	n := p.nodes[s.node]
	if n == nil || n.stream != s {
		p.mu.Unlock()
		return
	}
	differ := map[types.UID]struct{}{}
	before := make(map[ruleKey]Steering, len(n.rules))
	for k, rule := range n.rules {
		before[k] = s.steering(k, rule)
	}
	for _, t := range r.Targets {
		k := ruleKey{t.PodUid, t.Port, t.InterceptUid}
		if rule := n.rules[k]; rule != nil && !sameUnanswered(rule.unanswered, t.Unanswered) {
			rule.unanswered = t.Unanswered
			differ[types.UID(k.intercept)] = struct{}{}
		}
	}
	s.reported, s.report, s.targets = true, r.Revision, targets
	s.agent.Datapath, s.agent.Reason = r.GetDatapath().GetName(), r.GetDatapath().GetReason()
	for k, rule := range n.rules {
		if s.steering(k, rule) != before[k] {
			differ[types.UID(k.intercept)] = struct{}{}
		}
	}
	p.mu.Unlock()
	p.changes.Add(slices.Collect(maps.Keys(differ))...)
}

// Steering is what is known about one placement.
type Steering struct {
	// Attached is set if the node has an agent.
	Attached bool
	// Reported is set if the agent has reported on the placement as it is now.
	Reported bool
	Steering bool
	// Failed is set if the agent has given up for now. Message says why.
	Failed  bool
	Message string
}

// tooOld is the message for node agents without wiretaps, noUDP for those without UDP.
const (
	tooOld = "the node agent is older than the traffic manager and does not know wiretaps: whoever runs the cluster has to upgrade it (`sidestep helm upgrade`)"
	noUDP  = "the node agent is older than the traffic manager and cannot intercept UDP: whoever runs the cluster has to upgrade it (`sidestep helm upgrade`)"
)

func (s *Stream) steering(k ruleKey, r *placed) Steering {
	st := Steering{Attached: true}
	if r.UDP && !s.birth.UDP {
		st.Reported, st.Failed, st.Message = true, true, noUDP
		return st
	}
	if r.Wiretap && !s.birth.Wiretaps {
		st.Reported, st.Failed, st.Message = true, true, tooOld
		return st
	}
	if !s.reported || r.since == 0 || s.report < r.since {
		return st
	}
	if v, ok := s.targets[k]; ok {
		st.Reported, st.Steering, st.Failed, st.Message = true, v.steering, v.failed, v.message
	}
	return st
}

// Steering returns the state of an intercept's placement.
func (p *Plan) Steering(uid types.UID, nodeName, podUID string, port uint32) Steering {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n := p.nodes[nodeName]
	if n == nil || n.stream == nil {
		return Steering{}
	}
	k := ruleKey{podUID, port, string(uid)}
	r := n.rules[k]
	if r == nil {
		return Steering{Attached: true}
	}
	return n.stream.steering(k, r)
}
