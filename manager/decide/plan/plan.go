// SPDX-License-Identifier: Apache-2.0

// Package plan has what each node has to steer, and what the node agents have reported about it.
// The controller writes it, intercept by intercept. Each node agent's stream reads its node's share
// whenever that changes.
package plan

import (
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/manager/changes"
)

// Placement is an intercept's rule at one port of one pod.
type Placement struct {
	Node   string
	Pod    *agentpb.Pod // without targets
	Port   uint32
	UDP    bool // the port is a UDP port; all ports of an intercept have one protocol
	Probes []*agentpb.Probe
	Rule   *agentpb.Rule
	// Wiretap is set if the app keeps what the rule matches, and the laptop gets a copy.
	Wiretap bool
}

func (p *Placement) same(o *Placement) bool {
	return p.Node == o.Node && p.Port == o.Port && p.UDP == o.UDP && p.Wiretap == o.Wiretap &&
		proto.Equal(p.Pod, o.Pod) && proto.Equal(p.Rule, o.Rule) &&
		slices.EqualFunc(p.Probes, o.Probes, func(a, b *agentpb.Probe) bool { return proto.Equal(a, b) })
}

// target is a port of a pod on a node.
type target struct {
	node string
	pod  string // UID
	port uint32
}

func (p *Placement) target() target { return target{p.Node, p.Pod.GetUid(), p.Port} }

// placed is a placement in force on a node.
type placed struct {
	*Placement
	// since is the first revision of the present stream that contains it. 0: none yet.
	since uint64
	// unanswered is what its node agent reported last, each reason once. It outlives the stream, so
	// that a node agent that reconnects with the same counts reports nothing new.
	unanswered []*agentpb.Unanswered
}

type ruleKey struct {
	pod       string
	port      uint32
	intercept string
}

// node is one node's share.
type node struct {
	rules      map[ruleKey]*placed
	intercepts map[string]share // by UID
	stream     *Stream
}

// share is what an intercept has on a node.
type share struct {
	rules   int
	keyHash string
}

// Plan is what all nodes have to steer. It is safe for concurrent use.
type Plan struct {
	changes *changes.Set[types.UID]
	open    chan struct{}
	once    sync.Once

	mu         sync.RWMutex
	nodes      map[string]*node
	intercepts map[types.UID]map[target]*Placement
	attached   int
	refused    map[string]string // why the agent of a node may not attach, by node
	holders    map[string]int    // placed intercepts by key hash
	holderOf   map[types.UID]string
	held       func(keyHash string)
}

// New returns an empty plan.
func New() *Plan {
	return &Plan{
		changes: changes.NewSet[types.UID](), open: make(chan struct{}), nodes: map[string]*node{},
		intercepts: map[types.UID]map[target]*Placement{},
		refused:    map[string]string{}, holders: map[string]int{}, holderOf: map[types.UID]string{},
		held: func(string) {},
	}
}

// Holds reports whether any intercept of the session with this key is in force.
func (p *Plan) Holds(keyHash string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.holders[keyHash] > 0
}

// OnHeld sets a function that is called with the key hash of a session whenever an intercept of it has
// placements. It must be called before Set.
func (p *Plan) OnHeld(held func(keyHash string)) { p.held = held }

// hold notes the session of an intercept in force. If keyHash is empty, the intercept is no longer
// in force.
func (p *Plan) hold(uid types.UID, keyHash string) {
	old := p.holderOf[uid]
	if old == keyHash {
		return
	}
	if old != "" {
		if p.holders[old]--; p.holders[old] == 0 {
			delete(p.holders, old)
		}
		delete(p.holderOf, uid)
	}
	if keyHash != "" {
		p.holders[keyHash]++
		p.holderOf[uid] = keyHash
	}
}

// Changes returns the intercepts for which the reports of node agents may have changed.
func (p *Plan) Changes() *changes.Set[types.UID] { return p.changes }

// Open lets node agents have their assignments. Before that the plan may be incomplete, and an
// assignment without a pod makes its node agent drain that pod.
func (p *Plan) Open() { p.once.Do(func() { close(p.open) }) }

// Opened returns a channel that is closed once the plan is open.
func (p *Plan) Opened() <-chan struct{} { return p.open }

// Set replaces the placements of an intercept. Without placements it removes the intercept. keyHash
// is of the session that may have its traffic.
func (p *Plan) Set(uid types.UID, keyHash string, placements []Placement) {
	if len(placements) > 0 {
		defer p.held(keyHash) // with mu unlocked
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.intercepts[uid]
	after := make(map[target]*Placement, len(placements))
	touched := map[string]struct{}{}
	for i := range placements {
		next := &placements[i]
		at := next.target()
		after[at] = next
		if had := before[at]; had == nil || !had.same(next) {
			p.put(uid, keyHash, next)
			touched[next.Node] = struct{}{}
		}
	}
	for at := range before {
		if after[at] == nil {
			p.drop(uid, at)
			touched[at.node] = struct{}{}
		}
	}
	if p.intercepts[uid] = after; len(after) == 0 {
		delete(p.intercepts, uid)
		p.hold(uid, "")
	} else {
		p.hold(uid, keyHash)
	}
	for name := range touched {
		n := p.nodes[name]
		if n.stream != nil {
			n.stream.poke()
		}
		p.tidy(name, n)
	}
}

func (p *Plan) put(uid types.UID, keyHash string, next *Placement) {
	n := p.nodeOf(next.Node)
	key := ruleKey{next.Pod.GetUid(), next.Port, string(uid)}
	had := n.intercepts[string(uid)]
	now := &placed{Placement: next}
	if old := n.rules[key]; old == nil {
		had.rules++
	} else {
		now.unanswered = old.unanswered
	}
	n.intercepts[string(uid)] = share{had.rules, keyHash}
	n.rules[key] = now
}

func (p *Plan) drop(uid types.UID, at target) {
	n := p.nodes[at.node]
	delete(n.rules, ruleKey{at.pod, at.port, string(uid)})
	had := n.intercepts[string(uid)]
	if had.rules--; had.rules == 0 {
		delete(n.intercepts, string(uid))
	} else {
		n.intercepts[string(uid)] = had
	}
}

func (p *Plan) nodeOf(name string) *node {
	n := p.nodes[name]
	if n == nil {
		n = &node{rules: map[ruleKey]*placed{}, intercepts: map[string]share{}}
		p.nodes[name] = n
	}
	return n
}

// tidy forgets a node that has neither placements nor an agent.
func (p *Plan) tidy(name string, n *node) {
	if n.stream == nil && len(n.rules) == 0 {
		delete(p.nodes, name)
	}
}

// Owner is the session that gets an intercept's traffic from a node, and the intercept's name.
type Owner struct {
	KeyHash         string // of the session key
	Namespace, Name string // of the Intercept
	Pod             string // the pod that was asked for, if the intercept has it on the node
}

// Owner returns the owner of an intercept's traffic from a pod on a node, and false if the
// intercept has no placement on the node. Nothing else that a node agent claims is trusted.
func (p *Plan) Owner(nodeName, interceptUID, pod string) (Owner, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n := p.nodes[nodeName]
	if n == nil {
		return Owner{}, false
	}
	its, ok := n.intercepts[interceptUID]
	if !ok {
		return Owner{}, false
	}
	o := Owner{KeyHash: its.keyHash}
	for at, placement := range p.intercepts[types.UID(interceptUID)] {
		o.Namespace, o.Name = placement.Rule.GetInterceptNamespace(), placement.Rule.GetInterceptName()
		if at.node == nodeName && placement.Pod.GetName() == pod {
			o.Pod = pod
			break
		}
	}
	return o, true
}

// Placements returns the placements of an intercept, each pod once, and the hash of the session key
// to which it belongs.
func (p *Plan) Placements(interceptUID string) (keyHash string, all []Placement) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	seen := map[string]bool{}
	for _, placement := range p.intercepts[types.UID(interceptUID)] {
		if n := p.nodes[placement.Node]; n != nil {
			keyHash = n.intercepts[interceptUID].keyHash
		}
		if uid := placement.Pod.GetUid(); !seen[uid] {
			seen[uid] = true
			all = append(all, *placement)
		}
	}
	return keyHash, all
}

// Attached returns the number of attached node agents.
func (p *Plan) Attached() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.attached
}
