// SPDX-License-Identifier: Apache-2.0

package datagrams

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/part"
)

// Node is what the pods of a node share. It is a part.Kind.
type Node struct {
	tunnels Tunnels
	metrics *Metrics
}

// New returns a node. It registers its metrics if registry is not nil.
func New(tunnels Tunnels, registry prometheus.Registerer) *Node {
	return &Node{tunnels: tunnels, metrics: NewMetrics(registry)}
}

// podPart is the Part of one pod.
type podPart struct {
	node *Node
	pod  *part.Pod

	mu      sync.Mutex
	relay   *Pod   // nil until a UDP port is steered
	problem string // why relay is nil
}

// Open implements part.Kind. No socket is opened before a UDP port has to be steered.
func (n *Node) Open(pod *part.Pod) (part.Part, error) { return &podPart{node: n, pod: pod}, nil }

// current returns the relay, or nil.
func (p *podPart) current() *Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.relay
}

// Apply implements part.Part. If datagrams cannot be steered, TCP ports still are.
func (p *podPart) Apply(want *agentpb.Pod) error {
	relay := p.current()
	if len(want.GetUdpTargets()) > 0 && relay == nil {
		var err error
		relay, err = p.open()
		p.mu.Lock()
		if p.relay, p.problem = relay, ""; err != nil {
			p.relay, p.problem = nil, err.Error()
		}
		p.mu.Unlock()
		if err != nil {
			return nil // a Problem tells
		}
	}
	if relay == nil {
		return nil
	}
	wanted := map[uint16]*Rule{}
	for _, t := range want.GetUdpTargets() {
		for _, r := range t.GetRules() {
			wanted[uint16(t.GetPort())] = &Rule{
				InterceptUID: r.GetInterceptUid(), Namespace: r.GetInterceptNamespace(),
				Name: r.GetInterceptName(), Connected: r.GetConnected(),
			}
		}
	}
	return relay.SetRules(wanted)
}

func (p *podPart) open() (*Pod, error) {
	if err := p.pod.Program.Datagrams(); err != nil {
		return nil, err
	}
	return Open(p.pod.Namespace.Namespace, Config{
		Name: p.pod.Name, IPs: p.pod.IPs, Steering: p.pod.Program, Tunnels: p.node.tunnels,
		Metrics: p.node.metrics, Log: p.pod.Log,
	})
}

// Problem implements part.Part.
func (p *podPart) Problem(at part.Target, _ *agentpb.Rule) (none part.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !at.UDP || p.problem == "" {
		return none
	}
	return part.Problem{Message: p.problem, Refuse: true}
}

// Prove implements part.Prover.
func (p *podPart) Prove(at part.Target) error {
	if relay := p.current(); relay != nil {
		return relay.Prove(at.Port)
	}
	return nil
}

// Report implements part.Reporter.
func (p *podPart) Report(at part.Target, _ *agentpb.Rule, r *agentpb.TargetReport) {
	if relay := p.current(); relay != nil && at.UDP {
		counted := relay.Stats(at.Port)
		r.Connections, r.Matched, r.Fallbacks = counted.Flows, counted.Matched, counted.Fallbacks
	}
}

// Drain implements part.Part. All UDP ports are left to the app, and flows end. If a newer node
// agent steers the pod, answers that are on their way still arrive.
func (p *podPart) Drain() error {
	relay := p.current()
	if relay == nil || p.pod.Superseded() {
		return nil
	}
	return relay.SetRules(map[uint16]*Rule{})
}

// Close implements part.Part.
func (p *podPart) Close() error {
	if relay := p.current(); relay != nil {
		return relay.Close()
	}
	return nil
}

var lookupsDesc = prometheus.NewDesc("sidestep_nodeagent_udp_lookups_total",
	"What the kernel did with datagrams to steered UDP ports; all but steered ones went to the app.",
	[]string{"pod", "outcome"}, nil)

var outcomes = map[bpf.Outcome]string{
	bpf.DatagramSteered: "steered", bpf.DatagramAgentSilent: "agent_silent",
	bpf.DatagramNoListener: "no_listener", bpf.DatagramNotAssigned: "not_assigned",
}

// Describe implements part.Described.
func (n *Node) Describe(descs chan<- *prometheus.Desc) { descs <- lookupsDesc }

// Collect implements part.Collector.
func (p *podPart) Collect(_ *agentpb.Pod, metrics chan<- prometheus.Metric) {
	if p.current() == nil {
		return
	}
	counted, err := p.pod.Program.DatagramOutcomes()
	if err != nil {
		return
	}
	for outcome, label := range outcomes {
		metrics <- prometheus.MustNewConstMetric(lookupsDesc, prometheus.CounterValue,
			float64(counted[outcome]), p.pod.Name, label)
	}
}
