// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"

	"sidestep.dev/sidestep/nodeagent/mesh"
)

// meshProxy is the proxy that a service mesh has in the pod, if there is one.
type meshProxy struct {
	pod Mesh // nil if none is looked for

	mu    sync.Mutex
	proxy mesh.Proxy
	why   string         // it cannot be told from the rest of the pod
	older map[uint16]int // how many of its open connections are the app's, by port
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (s *site) meetMesh() {
	// The namespace of a node has everybody's proxies.
	if s.pod.set.cfg.Meshes != nil && !s.hostNetwork {
		s.mesh.pod = s.pod.set.cfg.Meshes.Open(s.pod.uid, s.ns)
	}
}

// steerable is where the app is reached on a port: at the pod's addresses, and at 127.0.0.1 by a
// mesh's proxy alone.
func (s *site) steerable(port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	for _, ip := range s.ips {
		all = append(all, netip.AddrPortFrom(ip, port))
	}
	if s.mesh.pod != nil {
		all = append(all, netip.AddrPortFrom(loopback4, port))
	}
	return all
}

// lookForMesh makes the connections of a proxy that has appeared known to the steering.
func (s *site) lookForMesh() {
	if s.mesh.pod == nil {
		return
	}
	var targets []netip.AddrPort
	for port := range s.steered {
		targets = append(append(targets, s.steerable(port)...), netip.AddrPortFrom(netip.IPv6Loopback(), port))
	}
	proxy, err := s.mesh.pod.Look(targets)
	why := ""
	if err != nil {
		why = fmt.Sprintf("connections of a mesh's proxy in the pod cannot be told from the pod's own, so what comes through it that way is not intercepted: %s",
			strings.ReplaceAll(err.Error(), "\n", "; "))
	} else if target, missed := s.mesh.pod.Missed(); missed {
		why = fmt.Sprintf("%s's proxy in the pod connects to the app at %s in a way that cannot be told from the pod's own traffic, so what comes that way is not intercepted",
			proxy.Name, target)
	}
	older := map[uint16]int{}
	if proxy.Name != "" { // for each port the kernel walks through all of the node's connections
		for port := range s.steered {
			if n, err := s.mesh.pod.Older(port); err == nil && n > 0 {
				older[port] = n
			}
		}
	}
	met := s.mesh.learn(proxy, why)
	if s.mesh.count(older) || met {
		s.pod.set.notify()
	}
	if !met {
		return
	}
	if why != "" {
		s.pod.log.Warn(why)
	} else if proxy.Name != "" {
		s.pod.log.Info("the pod has a mesh's proxy", "mesh", proxy.Name)
	}
}

func (m *meshProxy) learn(proxy mesh.Proxy, why string) (news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	news = m.proxy != proxy || m.why != why
	m.proxy, m.why = proxy, why
	return news
}

func (m *meshProxy) count(older map[uint16]int) (news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	news = !maps.Equal(m.older, older)
	m.older = older
	return news
}

// olderProblem says what is not intercepted because the proxy had connections to the app before.
func (m *meshProxy) olderProblem(port uint16) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.older[port] == 0 {
		return ""
	}
	return fmt.Sprintf("connections that %s's proxy in the pod has had open to the app since before the intercept stay with the app, with all requests on them, until they close: %d",
		m.proxy.Name, m.older[port])
}

// problem says what is not intercepted that comes through the proxy, and whether that may be all.
func (m *meshProxy) problem() (why string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why, !m.proxy.Known
}

// isMeshs says whether a connection is one that a mesh's proxy was made to open to 127.0.0.1.
func (s *site) isMeshs(local, remote netip.AddrPort) bool {
	return s.mesh.pod != nil && local.Addr() == loopback4 && remote.Addr() == mesh.DialsFrom
}

// isDisguised says whether a mesh's proxy would come from elsewhere if it were not made known to
// the steering. The app is to see what it always sees: the address to which the proxy connects.
func (s *site) isDisguised(client netip.AddrPort) bool {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	from := client.Addr()
	return s.mesh.proxy.Name != "" &&
		(from == loopback4 || from == netip.IPv6Loopback() || from == mesh.DialsFrom)
}

// leaveMesh lets a mesh's proxy connect as it would without the steering.
func (s *site) leaveMesh() error {
	if s.mesh.pod == nil {
		return nil
	}
	s.mesh.learn(mesh.Proxy{}, "")
	return s.mesh.pod.Close()
}
