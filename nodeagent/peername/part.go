// SPDX-License-Identifier: Apache-2.0

package peername

import (
	"log/slog"
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

var (
	shownDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_shown",
		"Whether the app of a pod sees its clients' addresses (1), or the pod's own instead (0).",
		[]string{"pod"}, nil)
	failedDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_failed_total",
		"Connections on which the app saw the pod's own address although it is shown its clients'.",
		[]string{"pod"}, nil)
)

// Describe implements part.Described.
func (n *Node) Describe(descs chan<- *prometheus.Desc) {
	descs <- shownDesc
	descs <- failedDesc
}

// podPart is the part of one pod.
type podPart struct {
	name     string
	log      *slog.Logger
	pod      *Pod // nil if the app sees the pod's own address
	failures atomic.Uint64
}

// Open implements part.Kind. A pod whose app cannot be shown its clients has a part all the same: a
// metric says so.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	p := &podPart{name: pod.Name, log: pod.Log}
	var err error
	if p.pod, err = n.Attach(pod.UID, pod.Processes()); err != nil {
		p.log.Warn("the app sees the pod's own address instead of its clients'", "error", err)
	}
	return p, nil
}

// Dialing implements part.Dialer.
func (p *podPart) Dialing(client netip.AddrPort) (prepare func(fd int), decided bool) {
	if p.pod == nil {
		return nil, false
	}
	return func(fd int) {
		if err := p.pod.SetPeer(fd, client); err != nil && p.failures.Add(1) == 1 {
			p.log.Warn("the app sees the pod's own address instead of a client's (more of these are only counted)",
				"error", err)
		}
	}, true
}

// Collect implements part.Collector.
func (p *podPart) Collect(_ *agentpb.Pod, metrics chan<- prometheus.Metric) {
	shown := 0.0
	if p.pod != nil {
		shown = 1
	}
	metrics <- prometheus.MustNewConstMetric(shownDesc, prometheus.GaugeValue, shown, p.name)
	metrics <- prometheus.MustNewConstMetric(failedDesc, prometheus.CounterValue,
		float64(p.failures.Load()), p.name)
}

func (p *podPart) Apply(*agentpb.Pod) error                               { return nil }
func (p *podPart) Problem(part.Target, *agentpb.Rule) (none part.Problem) { return none }
func (p *podPart) Drain() error                                           { return nil }

func (p *podPart) Close() error {
	if p.pod == nil {
		return nil
	}
	return p.pod.Close()
}
