// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// handler serves /healthz, /readyz and /metrics.
func (a *agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", check(a.alive))
	mux.Handle("GET /readyz", check(a.ready))
	mux.Handle("GET /metrics",
		promhttp.HandlerFor(a.metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	if a.cfg.Profile {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func check(ok func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := ok(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

func (a *agent) register() {
	a.metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		a.pods,
		datapath{a.steering},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestep_nodeagent_build_info", Help: "1; the version is a label.",
			ConstLabels: prometheus.Labels{"version": version.Version},
		}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestep_nodeagent_attached", Help: "1 while the manager's assignments arrive.",
		}, func() float64 { return number(a.uplink.Attached()) }),
	)
}

// datapath tells how this node steers, and why so.
type datapath struct{ *steer.Node }

var datapathDesc = prometheus.NewDesc("sidestep_nodeagent_datapath_info",
	"1; how this node steers, none if it cannot, and why so are labels.", []string{"datapath", "reason"}, nil)

func (d datapath) Describe(descs chan<- *prometheus.Desc) { descs <- datapathDesc }

func (d datapath) Collect(metrics chan<- prometheus.Metric) {
	name, why := d.Datapath()
	if name == "" {
		name = "none"
	}
	metrics <- prometheus.MustNewConstMetric(datapathDesc, prometheus.GaugeValue, 1, string(name), why)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
