// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

type metrics struct {
	connections   prometheus.Counter
	open          prometheus.Gauge
	passed        prometheus.Counter
	matched       prometheus.Counter
	fallbacks     prometheus.Counter
	tunnels       prometheus.Gauge
	wholeConns    prometheus.Counter
	wholeFellBack prometheus.Counter
	panics        prometheus.Counter
	unanswered    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string, labels prometheus.Labels) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
		if r != nil {
			r.MustRegister(c)
		}
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		if r != nil {
			r.MustRegister(g)
		}
		return g
	}
	const (
		requests = "sidestep_proxy_requests_total"
		whole    = "sidestep_proxy_claimed_connections_total"

		requestsHelp  = "HTTP requests by where they went."
		wholeHelp     = "Connections that a tcp intercept matched, by where they went."
		fallbacksHelp = "HTTP requests that went to the app " +
			"because the laptop that matches them could not take them."
	)
	to := func(where string) prometheus.Labels { return prometheus.Labels{"to": where} }
	return &metrics{
		connections:   counter("sidestep_proxy_connections_total", "Steered connections that were served.", nil),
		open:          gauge("sidestep_proxy_open_connections", "Steered connections that are being served."),
		passed:        counter(requests, requestsHelp, to("app")),
		matched:       counter(requests, requestsHelp, to("laptop")),
		fallbacks:     counter("sidestep_proxy_fallback_requests_total", fallbacksHelp, nil),
		wholeConns:    counter(whole, wholeHelp, to("laptop")),
		wholeFellBack: counter(whole, wholeHelp, to("app")),
		tunnels:       gauge("sidestep_proxy_open_tunnels", "Open tunnels to laptops."),
		unanswered: counter("sidestep_proxy_unanswered_requests_total",
			"HTTP requests that match an intercept and were not answered by its laptop.", nil),
		panics: counter("sidestep_proxy_panics_total",
			"Connections that were reset because of a fault in the proxy.", nil),
	}
}

// registerBudget registers the metrics of what connections hold, and of the bounds that they meet.
func registerBudget(r prometheus.Registerer, b *budget.Budget) {
	if r == nil {
		return
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestep_proxy_buffered_bytes",
		Help: "Bytes that connections hold: heads that are not complete, requests that may be sent again, " +
			"and what waits for HTTP/2 peers that do not read.",
	}, func() float64 { return float64(b.Held()) }))
	for _, l := range budget.All() {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sidestep_proxy_limits_met_total",
			Help: "How often a connection met a limit. Beyond memory, connections pass to the app unread; " +
				"beyond the others, streams are refused or HTTP/2 connections end by GOAWAY.",
			ConstLabels: prometheus.Labels{"limit": l.String()},
		}, func() float64 { return float64(b.Times(l)) }))
	}
}

// registerCopies registers the metrics of all wiretaps.
func registerCopies(r prometheus.Registerer, b *tap.Budget) {
	if r == nil {
		return
	}
	for outcome, n := range map[string]func(tap.Counts) uint64{
		"copied":  func(c tap.Counts) uint64 { return c.Copied },
		"cut":     func(c tap.Counts) uint64 { return c.Cut },
		"dropped": func(c tap.Counts) uint64 { return c.Dropped },
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sidestep_proxy_wiretap_copies_total",
			Help: "Requests, and connections where nobody looks for requests, that were copied for wiretaps, " +
				"were cut after having begun to be copied, " +
				"or were not copied because there was no room or nobody to take them.",
			ConstLabels: prometheus.Labels{"outcome": outcome},
		}, func() float64 { return float64(n(b.Counts())) }))
	}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestep_proxy_wiretap_bytes",
			Help: "Bytes of copies that are on their way to laptops.",
		}, func() float64 { return float64(b.Bytes()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestep_proxy_wiretap_tunnels",
			Help: "Open tunnels for copies.",
		}, func() float64 { return float64(b.Lines()) }))
}
