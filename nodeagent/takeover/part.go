// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/headwatch"
	"sidestep.dev/sidestep/nodeagent/part"
)

// Node is what the pods of a node have in common. It is a part.Kind.
type Node struct {
	steering func() bool // whether new connections are steered at this moment
	counters Counters
}

// New returns a node. steering reports whether new connections are steered at this moment: while they
// are not, ending a connection would bring its client to the app again. It registers its metrics.
func New(steering func() bool, registry prometheus.Registerer) *Node {
	n := &Node{steering: steering}
	n.register(registry)
	return n
}

// podPart is the part of one pod: a Port for each port of which some rule wants something.
type podPart struct {
	node  *Node
	pod   *part.Pod
	ports map[uint16]*Port
	heads *headwatch.Pod // of all ports
	// done is what each port does, where it does it. For another port's sake the kernel need not walk
	// through all connections again.
	done map[uint16]*agentpb.Target
	// steered is set once new connections are steered as the last Apply wanted. Until then more are
	// opened that will be older.
	steered bool

	mu       sync.Mutex
	problems map[uint16]problem
}

// problem is why the open connections of a port are left alone, and which intercepts want otherwise.
type problem struct {
	text       string
	intercepts []string // UIDs
}

// Open implements part.Kind. The interfaces of a node carry everybody's traffic, which is not to be
// looked into for one pod's sake.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	if pod.HostNetwork {
		return nil, nil
	}
	return &podPart{
		node: n, pod: pod, ports: map[uint16]*Port{}, done: map[uint16]*agentpb.Target{},
		problems: map[uint16]problem{},
		heads: headwatch.NewPod(headwatch.Config{Namespace: pod.Namespace, Log: pod.Log,
			Counters: &n.counters.Counters}),
	}, nil
}

// Apply implements part.Part: it finds the connections that are open before new ones are steered.
// When that fails they stay with the app, and steering goes on.
func (p *podPart) Apply(want *agentpb.Pod) error {
	if !p.steered {
		clear(p.done)
	}
	p.steered = false
	wanted := map[uint16]bool{}
	for _, t := range want.GetTargets() {
		wanted[uint16(t.GetPort())] = true
		p.apply(t)
	}
	var errs []error
	for port := range p.ports {
		if !wanted[port] {
			errs = append(errs, p.leave(port))
		}
	}
	return errors.Join(errs...)
}

func (p *podPart) apply(t *agentpb.Target) {
	port := uint16(t.GetPort())
	if proto.Equal(p.done[port], t) {
		return
	}
	rules := rulesOf(t)
	err := p.setRules(port, rules)
	if delete(p.done, port); err == nil {
		p.done[port] = t
	}
	var now problem
	if err != nil && len(rules) > 0 {
		now.text = fmt.Sprintf("connections to port %d that are open already stay with the app: %v", port, err)
		for _, r := range rules {
			now.intercepts = append(now.intercepts, r.Intercept)
		}
	}
	p.mu.Lock()
	before := p.problems[port]
	p.problems[port] = now
	p.mu.Unlock()
	if now.text != "" && now.text != before.text {
		p.pod.Log.Warn(now.text)
	}
}

func (p *podPart) setRules(port uint16, rules []Rule) error {
	at := p.ports[port]
	if at == nil {
		if len(rules) == 0 {
			return nil
		}
		var err error
		at, err = Open(Config{
			Namespace: p.pod.Namespace, Port: port, Watch: p.heads,
			Claims:   func(head match.Head) string { return p.pod.Match(port, head) },
			Steering: p.node.steering, Counters: &p.node.counters, Log: p.pod.Log,
		})
		if err != nil {
			return err
		}
		p.ports[port] = at
	}
	return at.SetRules(rules)
}

// rulesOf returns the rules of a target that want something of open connections. Those whose laptop
// is away do not.
func rulesOf(t *agentpb.Target) []Rule {
	var rules []Rule
	for _, r := range t.GetRules() {
		if !r.GetConnected() || r.GetExisting() == None {
			continue
		}
		rule := Rule{Intercept: r.GetInterceptUid(), TCP: r.GetTcp(), Existing: r.GetExisting()}
		var err error
		if rule.HTTP, err = match.FromProto(r.GetHttp()); err != nil {
			continue // the supervisor reports it
		}
		rules = append(rules, rule)
	}
	return rules
}

// Steered implements part.Steered. Without steering, which connections are older is forgotten.
func (p *podPart) Steered(on bool) {
	if p.steered = on; !on {
		if err := p.Drain(); err != nil {
			p.pod.Log.Warn("stop watching open connections", "error", err)
		}
		return
	}
	for port, at := range p.ports {
		if err := at.Steered(); err != nil {
			p.pod.Log.Warn("connections that are open already stay with the app", "port", port, "error", err)
		}
	}
}

// Problem implements part.Part.
func (p *podPart) Problem(at part.Target, rule *agentpb.Rule) (none part.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.problems[at.Port]
	if at.UDP || now.text == "" || !slices.Contains(now.intercepts, rule.GetInterceptUid()) {
		return none
	}
	return part.Problem{Message: now.text}
}

// leave leaves the open connections of a port alone.
func (p *podPart) leave(port uint16) error {
	at := p.ports[port]
	delete(p.ports, port)
	delete(p.done, port)
	p.mu.Lock()
	delete(p.problems, port)
	p.mu.Unlock()
	return at.Close()
}

// Drain implements part.Part: all connections that are older stay with the app.
func (p *podPart) Drain() error {
	var errs []error
	for port := range p.ports {
		errs = append(errs, p.leave(port))
	}
	return errors.Join(errs...)
}

// Close implements part.Part.
func (p *podPart) Close() error { return p.Drain() }

func (n *Node) register(r prometheus.Registerer) {
	c := &n.counters
	count := func(name, help, reason string, n *atomic.Uint64) {
		opts := prometheus.CounterOpts{Name: name, Help: help}
		if reason != "" {
			opts.ConstLabels = prometheus.Labels{"reason": reason}
		}
		r.MustRegister(prometheus.NewCounterFunc(opts, func() float64 { return float64(n.Load()) }))
	}
	const ended = "Connections from before an intercept that were ended: " +
		"for a request of its own, or because they were idle or all were to be."
	count("sidestep_nodeagent_takeover_connections_total", ended, "request", &c.TakenOver)
	count("sidestep_nodeagent_takeover_connections_total", ended, "existing", &c.Ended)
	count("sidestep_nodeagent_takeover_held_packets_total", "Packets on connections from before an intercept that were held back.",
		"", &c.Queued)
	count("sidestep_nodeagent_takeover_released_packets_total",
		"Packets that were held back and let go, since they were no intercept's.", "", &c.Released)
	const left = "Requests on connections from before an intercept that may have been its own, and went to the app: " +
		"the node agent had not decided in time, there were too many to ask it, or the kernel did not end the connection."
	count("sidestep_nodeagent_takeover_left_requests_total", left, "late", &c.TimedOut)
	count("sidestep_nodeagent_takeover_left_requests_total", left, "no_room", &c.NoRoom)
	count("sidestep_nodeagent_takeover_left_requests_total", left, "not_ended", &c.LeftUndestroyed)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestep_nodeagent_takeover_watched_connections",
		Help: "Connections from before an intercept that are open and being watched.",
	}, func() float64 { return float64(c.Watched.Load()) }))
}
