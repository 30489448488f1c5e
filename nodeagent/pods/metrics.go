// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/bpf"
)

var (
	podsDesc = prometheus.NewDesc("sidestep_nodeagent_pods",
		"Pods assigned to this node agent, by whether they are being steered.", []string{"steered"}, nil)
	claimsDesc = prometheus.NewDesc("sidestep_nodeagent_claims",
		"Claims of intercepts on ports of pods, by whether they are proved to work.", []string{"steering"}, nil)
	clientsDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_shown",
		"Whether the app of a pod sees its clients' addresses (1), or the pod's own instead (0).",
		[]string{"pod"}, nil)
	unshownDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_failed_total",
		"Connections on which the app saw the pod's own address although it is told its clients'.",
		[]string{"pod"}, nil)
	lookupsDesc = prometheus.NewDesc("sidestep_nodeagent_lookups_total",
		"What the kernel did with new connections to steered ports; all but steered ones went to the app.", []string{"pod", "outcome"}, nil)
	datagramsDesc = prometheus.NewDesc("sidestep_nodeagent_udp_lookups_total",
		"What the kernel did with datagrams to steered UDP ports; all but steered ones went to the app.", []string{"pod", "outcome"}, nil)
)

var outcomes = map[bpf.Outcome]string{
	bpf.Steered: "steered", bpf.AgentSilent: "agent_silent", bpf.NoListener: "no_listener",
	bpf.NotAssigned: "not_assigned",
	bpf.TimeWait:    "time_wait",
}

var datagramOutcomes = map[bpf.Outcome]string{
	bpf.DatagramSteered: "steered", bpf.DatagramAgentSilent: "agent_silent",
	bpf.DatagramNoListener:  "no_listener",
	bpf.DatagramNotAssigned: "not_assigned",
}

// Describe and Collect make a Set a prometheus.Collector.
func (s *Set) Describe(descs chan<- *prometheus.Desc) {
	descs <- podsDesc
	descs <- claimsDesc
	descs <- lookupsDesc
	descs <- datagramsDesc
	descs <- clientsDesc
	descs <- unshownDesc
	for _, d := range trafficDescs {
		descs <- d
	}
}

// Collect sends the state of the moment.
func (s *Set) Collect(metrics chan<- prometheus.Metric) {
	pods, claims := map[bool]int{}, map[bool]int{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		if p.wanted() == nil {
			continue // its successor may have the same name
		}
		reports := p.report()
		for _, r := range reports {
			claims[r.GetSteering()]++
		}
		counts, datagrams := p.lookups()
		if len(reports) > 0 {
			pods[counts != nil]++
		}
		for outcome, n := range counts {
			metrics <- prometheus.MustNewConstMetric(lookupsDesc, prometheus.CounterValue, float64(n),
				p.name, outcomes[outcome])
		}
		for outcome, word := range datagramOutcomes {
			if datagrams != nil {
				metrics <- prometheus.MustNewConstMetric(datagramsDesc, prometheus.CounterValue,
					float64(datagrams[outcome]), p.name, word)
			}
		}
		p.collectTraffic(metrics)
		if shown, failed, open := p.clients(); open {
			metrics <- prometheus.MustNewConstMetric(clientsDesc, prometheus.GaugeValue, shown, p.name)
			metrics <- prometheus.MustNewConstMetric(unshownDesc, prometheus.CounterValue, failed, p.name)
		}
	}
	for _, is := range []bool{false, true} {
		label := map[bool]string{false: "false", true: "true"}[is]
		metrics <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(pods[is]), label)
		metrics <- prometheus.MustNewConstMetric(claimsDesc, prometheus.GaugeValue, float64(claims[is]), label)
	}
}

// clients says whether the app is told its clients' addresses (1), and how often that has failed.
func (p *pod) clients() (shown, failed float64, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.site == nil {
		return 0, 0, false
	}
	if p.site.clientele.introducer != nil {
		shown = 1
	}
	return shown, float64(p.site.clientele.failures.Load()), true
}

// lookups counts what the kernel did with connections, and with datagrams if any were to be
// steered.
func (p *pod) lookups() (connections, datagrams map[bpf.Outcome]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.site == nil {
		return nil, nil
	}
	connections, err := p.site.program.Outcomes()
	if err != nil {
		return nil, nil
	}
	if p.site.relay() != nil {
		datagrams, _ = p.site.program.DatagramOutcomes()
	}
	return connections, datagrams
}
