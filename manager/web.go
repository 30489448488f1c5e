// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sidestep.dev/sidestep/internal/tunnel"
)

// web serves what Kubernetes and Prometheus ask.
func (m *Manager) web() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !m.listening.Load():
			http.Error(w, "not listening for gRPC", http.StatusServiceUnavailable)
		case !m.controller.Resolved():
			http.Error(w, "still reading the cluster (are the CRDs installed and the rights granted? the log says)", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	mux.Handle("GET "+tunnel.UpgradePath, m.upgrades)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.metrics, promhttp.HandlerOpts{}))
	return mux
}
