// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"
)

// Agent is what is known of a node's agent.
type Agent struct {
	Node     string
	Attached bool // if false, only Reason may be known
	Version  string
	Kernel   string
	Datapath string // how it steers; empty if it cannot, or has not reported yet
	Reason   string // why this datapath or none was chosen; or why it may not attach
}

// Introduce notes the agent's versions from its hello.
func (s *Stream) Introduce(version, kernel string) {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	s.agent.Version, s.agent.Kernel = version, kernel
}

// Agents lists the attached agents, and the nodes with placements that have none, by the names of
// the nodes.
func (p *Plan) Agents() []Agent {
	p.mu.RLock()
	defer p.mu.RUnlock()
	all := make([]Agent, 0, len(p.nodes))
	for name, n := range p.nodes {
		a := Agent{Reason: p.refused[name]}
		if n.stream != nil {
			a = n.stream.agent
			a.Attached = true
		}
		a.Node = name
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b Agent) int { return cmp.Compare(a.Node, b.Node) })
	return all
}
