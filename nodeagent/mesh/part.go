// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// podPart is the part of one pod.
type podPart struct {
	pod   *part.Pod
	it    *Pod
	ports map[uint16]bool // that are steered

	mu      sync.Mutex
	proxy   Proxy
	problem string         // why the proxy's connections are not recognized
	older   map[uint16]int // the proxy's connections that the app had accepted before, by port
}

// Open implements part.Kind. On the node's network there are everybody's proxies.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	pod.Probers = append(pod.Probers, probers...)
	if pod.HostNetwork {
		return nil, nil
	}
	pod.Addresses = append(pod.Addresses, part.Address{Addr: loopback4, From: DialsFrom})
	return &podPart{pod: pod, it: n.Pod(pod.UID, pod.Namespace.Namespace)}, nil
}

// Apply implements part.Part.
func (p *podPart) Apply(want *agentpb.Pod) error {
	p.ports = map[uint16]bool{}
	for _, t := range want.GetTargets() {
		p.ports[uint16(t.GetPort())] = true
	}
	return nil
}

// Steered implements part.Steered: it looks for a proxy, which may start after the app.
func (p *podPart) Steered(on bool) {
	if !on {
		return
	}
	var targets []netip.AddrPort
	for port := range p.ports {
		targets = append(append(targets, p.pod.Targets(port)...), netip.AddrPortFrom(netip.IPv6Loopback(), port))
	}
	proxy, err := p.it.Look(targets, p.pod.Processes())
	problem := ""
	if err != nil {
		problem = fmt.Sprintf("connections of a mesh's proxy in the pod cannot be told from the pod's own, so what comes through it that way is not intercepted: %s",
			strings.ReplaceAll(err.Error(), "\n", "; "))
	} else if target, missed := p.it.Missed(); missed {
		problem = fmt.Sprintf("%s's proxy in the pod connects to the app at %s in a way that cannot be told from the pod's own traffic, so what comes that way is not intercepted",
			proxy.Name, target)
	}
	older := map[uint16]int{}
	if proxy.Name != "" { // for each port the kernel walks through all of the node's connections
		for port := range p.ports {
			if n, err := p.it.Older(port); err == nil && n > 0 {
				older[port] = n
			}
		}
	}
	p.learn(proxy, problem, older)
}

// learn notes what was found, and tells about what is new.
func (p *podPart) learn(proxy Proxy, problem string, older map[uint16]int) {
	p.mu.Lock()
	met := p.proxy != proxy || p.problem != problem
	news := met || !maps.Equal(p.older, older)
	p.proxy, p.problem, p.older = proxy, problem, older
	p.mu.Unlock()
	if news {
		p.pod.Changed()
	}
	switch {
	case !met:
	case problem != "":
		p.pod.Log.Warn(problem)
	case proxy.Name != "":
		p.pod.Log.Info("the pod has a mesh's proxy", "mesh", proxy.Name)
	}
}

// Problem implements part.Part.
func (p *podPart) Problem(at part.Target, _ *agentpb.Rule) (none part.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := p.older[at.Port]; {
	case at.UDP:
		return none
	case p.problem != "": // may be all that comes to the pod
		return part.Problem{Message: p.problem, Refuse: !p.proxy.Known}
	case n > 0:
		return part.Problem{Message: fmt.Sprintf("connections that %s's proxy in the pod has had open to the app since before the intercept stay with the app, with all requests on them, until they close: %d",
			p.proxy.Name, n)}
	}
	return none
}

// Dialing implements part.Dialer. A client at one of these addresses is the proxy, which would come
// from the pod's own address if it were not recognized: the app is to see what it always sees.
func (p *podPart) Dialing(client netip.AddrPort) (prepare func(fd int) error, decided bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := client.Addr()
	return nil, p.proxy.Name != "" &&
		(from == loopback4 || from == netip.IPv6Loopback() || from == DialsFrom)
}

// Drain implements part.Part. The proxy connects as it would without.
func (p *podPart) Drain() error {
	p.mu.Lock()
	p.proxy, p.problem = Proxy{}, ""
	p.mu.Unlock()
	return p.it.Close()
}

// Close implements part.Part.
func (p *podPart) Close() error { return p.it.Close() }
