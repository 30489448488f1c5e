// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

// There is one series of each for every intercepted port of a pod and each way in which connections
// come to it: steered, to the node agent; direct, from clients to the app; local, from the pod
// itself to the app, and so from the node agent.
var (
	portLabels = []string{"pod", "port", "way"}

	openedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_connections_total",
		"Connections that were established.", portLabels, nil)
	openDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_open_connections",
		"Connections that are open.", portLabels, nil)
	abortedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_aborted_connections_total",
		"Connections that a reset or a timeout has ended.", portLabels, nil)
	receivedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_received_bytes_total",
		"Bytes from clients, on connections that have ended.", portLabels, nil)
	sentDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_sent_bytes_total",
		"Bytes that clients have acknowledged, on connections that have ended.", portLabels, nil)
	retransmitsDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_retransmitted_segments_total",
		"Segments that were sent again, on connections that have ended.", portLabels, nil)
	rttDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_rtt_seconds",
		"Smoothed round-trip times of connections at their end.", portLabels, nil)
	targetDesc = prometheus.NewDesc("sidestep_nodeagent_target_info",
		"1 for each intercept (namespace/name) of a port of a pod.", []string{"pod", "port", "intercept"}, nil)

	trafficDescs = []*prometheus.Desc{openedDesc, openDesc, abortedDesc, receivedDesc, sentDesc,
		retransmitsDesc, rttDesc, targetDesc}
)

func (p *pod) collectTraffic(metrics chan<- prometheus.Metric) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.desired.GetTargets() {
		port := fmt.Sprint(t.GetPort())
		named := map[string]bool{}
		for _, r := range allRules(t) {
			name := r.GetInterceptNamespace() + "/" + r.GetInterceptName()
			if !named[name] {
				metrics <- prometheus.MustNewConstMetric(targetDesc, prometheus.GaugeValue, 1, p.name,
					port, name)
			}
			named[name] = true
		}
		if p.site == nil {
			continue
		}
		counted, ok := p.site.traffic(uint16(t.GetPort()))
		if !ok {
			continue
		}
		collectWay(metrics, counted.Steered, p.name, port, "steered")
		if p.site.counter.Missing() == nil {
			collectWay(metrics, counted.Direct, p.name, port, "direct")
			collectWay(metrics, counted.Local, p.name, port, "local")
		}
	}
}

func collectWay(metrics chan<- prometheus.Metric, t tcpstats.Traffic, labels ...string) {
	for desc, n := range map[*prometheus.Desc]uint64{
		openedDesc: t.Opened, abortedDesc: t.Aborted, receivedDesc: t.Received, sentDesc: t.Sent,
		retransmitsDesc: t.Retransmits,
	} {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	metrics <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(t.Open()), labels...)
	buckets := map[float64]uint64{}
	var below uint64
	for i, n := range t.RTT.Buckets {
		below += n
		if bound, ok := tcpstats.Bound(i); ok {
			buckets[bound.Seconds()] = below
		}
	}
	metrics <- prometheus.MustNewConstHistogram(rttDesc, t.RTT.Count, t.RTT.Sum.Seconds(), buckets, labels...)
}
