// SPDX-License-Identifier: Apache-2.0

package tcpstats

import "github.com/prometheus/client_golang/prometheus"

// There is one series of each for every intercepted port of a pod and each way in which connections
// come to it: steered, to the node agent; direct, from clients to the app; local, from the pod
// itself to the app, and so from the node agent.
var (
	labels = []string{"pod", "port", "way"}

	openedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_connections_total",
		"Connections that were established.", labels, nil)
	openDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_open_connections",
		"Connections that are open.", labels, nil)
	abortedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_aborted_connections_total",
		"Connections that a reset or a timeout has ended.", labels, nil)
	receivedDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_received_bytes_total",
		"Bytes from clients, on connections that have ended.", labels, nil)
	sentDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_sent_bytes_total",
		"Bytes that clients have acknowledged, on connections that have ended.", labels, nil)
	retransmitsDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_retransmitted_segments_total",
		"Segments that were sent again, on connections that have ended.", labels, nil)
	rttDesc = prometheus.NewDesc("sidestep_nodeagent_tcp_rtt_seconds",
		"Smoothed round-trip times of connections at their end.", labels, nil)
)

// Describe implements part.Described.
func (n *Node) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{openedDesc, openDesc, abortedDesc, receivedDesc, sentDesc,
		retransmitsDesc, rttDesc} {
		descs <- d
	}
}

func collect(metrics chan<- prometheus.Metric, t Traffic, labels ...string) {
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
		if bound, ok := Bound(i); ok {
			buckets[bound.Seconds()] = below
		}
	}
	metrics <- prometheus.MustNewConstHistogram(rttDesc, t.RTT.Count, t.RTT.Sum.Seconds(), buckets, labels...)
}
