// SPDX-License-Identifier: Apache-2.0

package datagrams

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the metrics of all pods of a node.
type Metrics struct {
	flows                                       prometheus.Gauge
	evicted, toLaptop, toClient, toApp, dropped prometheus.Counter
}

// NewMetrics creates the metrics and registers them if registry is not nil.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	datagrams := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidestep_nodeagent_udp_datagrams_total",
		Help: "Datagrams of intercepted UDP ports, by where they went: to laptops, from there to clients, to apps since a laptop could not take them, or nowhere for lack of room.",
	}, []string{"to"})
	m := &Metrics{
		flows: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidestep_nodeagent_udp_flows",
			Help: "Clients of intercepted UDP ports that have a tunnel to a laptop, or are getting one.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestep_nodeagent_udp_flows_evicted_total",
			Help: "Flows that were ended to make room for others.",
		}),
		toLaptop: datagrams.WithLabelValues("laptop"), toClient: datagrams.WithLabelValues("client"),
		toApp: datagrams.WithLabelValues("app"), dropped: datagrams.WithLabelValues("nowhere"),
	}
	if registry != nil {
		registry.MustRegister(m.flows, m.evicted, datagrams)
	}
	return m
}
