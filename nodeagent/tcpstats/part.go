// SPDX-License-Identifier: Apache-2.0

package tcpstats

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

// podPart is the part of one pod. What cannot be counted is served all the same.
type podPart struct {
	pod     *part.Pod
	counter *Pod
	log     *slog.Logger
	counted map[netip.AddrPort]bool
}

// Open implements part.Kind.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	counter, err := n.Attach(pod.Namespace.Namespace, pod.UID, pod.Processes())
	if err != nil {
		return nil, fmt.Errorf("count connections: %w", err)
	}
	p := &podPart{pod: pod, counter: counter, log: pod.Log, counted: map[netip.AddrPort]bool{}}
	if err := counter.Missing(); err != nil {
		p.log.Warn("connections that the app itself accepts are not counted", "error", err)
	}
	for _, l := range pod.Listeners {
		p.check(counter.Mark(l))
	}
	return p, nil
}

func (p *podPart) check(err error) {
	if err != nil {
		p.log.Warn("connections are miscounted", "error", err)
	}
}

// Apply implements part.Part.
func (p *podPart) Apply(want *agentpb.Pod) error {
	wanted := map[netip.AddrPort]bool{}
	for _, t := range want.GetTargets() {
		for _, a := range p.pod.Targets(uint16(t.GetPort())) {
			wanted[a] = true
			if !p.counted[a] {
				p.check(p.counter.Add(a))
				p.counted[a] = true
			}
		}
	}
	for a := range p.counted {
		if !wanted[a] {
			p.check(p.counter.Remove(a))
			delete(p.counted, a)
		}
	}
	return nil
}

// Problem implements part.Part.
func (p *podPart) Problem(part.Target, *agentpb.Rule) (none part.Problem) { return none }

// Drain implements part.Part.
func (p *podPart) Drain() error { return p.Apply(nil) }

// Close implements part.Part.
func (p *podPart) Close() error { return p.counter.Close() }

// Probed implements part.Witness.
func (p *podPart) Probed(c *net.TCPConn) { p.check(p.counter.Discount(c)) }

// Report implements part.Reporter: laptops are told about the connections of clients.
func (p *podPart) Report(at part.Target, _ *agentpb.Rule, r *agentpb.TargetReport) {
	counted, ok := p.traffic(at.Port)
	if at.UDP || !ok {
		return
	}
	t := counted.Steered
	r.Traffic = &agentpb.Traffic{
		Opened: t.Opened, Closed: min(t.Opened, t.Closed), Aborted: t.Aborted,
		ReceivedBytes: t.Received, SentBytes: t.Sent,
		RetransmittedSegments: t.Retransmits, RttSamples: t.RTT.Count,
		RttSumUs: uint64(t.RTT.Sum.Microseconds()),
	}
}

func (p *podPart) traffic(port uint16) (Port, bool) {
	t, err := p.counter.Traffic(port)
	if err != nil {
		p.log.Debug("read connection counters", "error", err)
	}
	return t, err == nil
}

// Collect implements part.Collector.
func (p *podPart) Collect(want *agentpb.Pod, metrics chan<- prometheus.Metric) {
	for _, t := range want.GetTargets() {
		counted, ok := p.traffic(uint16(t.GetPort()))
		if !ok {
			continue
		}
		port := fmt.Sprint(t.GetPort())
		collect(metrics, counted.Steered, p.pod.Name, port, "steered")
		if p.counter.Missing() == nil {
			collect(metrics, counted.Direct, p.pod.Name, port, "direct")
			collect(metrics, counted.Local, p.pod.Name, port, "local")
		}
	}
}
