// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds, as the metric names them.
const (
	boundConnections = "connections"
	boundGreeting    = "greeting"
	boundSessions    = "sessions"
	boundCalls       = "calls"
	boundBytes       = "bytes"
)

// Limits of all peers.
const (
	limitMemory      = "memory"
	limitCalls       = "calls"
	limitConnections = "connections"
)

// Metrics count what gates let in and refuse.
type Metrics struct {
	refusals *prometheus.CounterVec
	waits    prometheus.Counter
	limits   *prometheus.CounterVec

	mu    sync.Mutex
	gates []*Gate
}

// NewMetrics registers the metrics of all gates.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidestep_manager_unproven_refused_total",
		Help: "Connections and calls refused or ended whose peers have proven nothing.",
	}, []string{"bound"}), waits: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sidestep_manager_unproven_held_total",
		Help: "Times that such a connection was not read for a second because it had sent its share.",
	})}
	for _, bound := range []string{boundConnections, boundGreeting, boundSessions, boundCalls, boundBytes} {
		m.refusals.WithLabelValues(bound)
	}
	m.limits = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidestep_manager_limits_met_total",
		Help: "Calls ended or refused, and connections ended, because a peer held more than it may.",
	}, []string{"limit"})
	for _, limit := range []string{limitMemory, limitCalls, limitConnections} {
		m.limits.WithLabelValues(limit)
	}
	r.MustRegister(m.refusals, m.waits, m.limits, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestep_manager_held_bytes",
		Help: "Memory that calls hold, with what waits for them and for connections; an estimate.",
	}, m.heldBytes), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestep_manager_unproven_connections",
		Help: "Connections whose peers have proven nothing: no Login, no intercept, no token.",
	}, m.unproven))
	return m
}

func (m *Metrics) add(g *Gate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gates = append(m.gates, g)
}

func (m *Metrics) unproven() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, g := range m.gates {
		g.mu.Lock()
		n += len(g.conns)
		g.mu.Unlock()
	}
	return float64(n)
}

func (m *Metrics) heldBytes() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var n int64
	for _, g := range m.gates {
		n += g.heldInAll.Load()
	}
	return float64(n)
}

func (m *Metrics) met(limit string) { m.limits.WithLabelValues(limit).Inc() }

func (m *Metrics) refused(bound string) { m.refusals.WithLabelValues(bound).Inc() }

func (m *Metrics) held() { m.waits.Inc() }
