// SPDX-License-Identifier: Apache-2.0

// Package web serves the manager's HTTP: health and metrics for the cluster on one listener, and
// upgraded requests of laptops on another, each with its own limits.
package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// Limits of a server. Requests are small. What an upgraded connection carries is bounded elsewhere.
const (
	headTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second // for /metrics of a large cluster to a slow reader
	idleTimeout   = time.Minute
	maxHead       = 16 << 10
)

// NewServer returns an HTTP/1 server with the limits of this package.
func NewServer(handler http.Handler, log *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: recovering(handler, log), Protocols: &protocols,
		ReadHeaderTimeout: headTimeout, ReadTimeout: headTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// recovering answers 500 when a handler panics, and logs the panic.
func recovering(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if what := recover(); what != nil {
				log.Error("HTTP handler panicked", "path", r.URL.Path, "panic", fmt.Sprint(what))
				http.Error(w, "internal error", http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r)
	})
}
