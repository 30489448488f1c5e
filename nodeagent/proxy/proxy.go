// SPDX-License-Identifier: Apache-2.0

// Package proxy serves the connections that were steered away from an app: it reads the head of
// each request, gives what an intercept matches to the laptop that holds it, and everything else,
// byte for byte, to the app.
//
// Two rules decide every doubtful case. Whoever is not intercepted notices nothing: bytes pass
// unaltered, nothing is added, and where a message could be read in two ways the whole connection
// becomes the app's, never to be parsed again. Whatever breaks, the app gets its traffic: a request
// that the laptop cannot take goes to the app with all its bytes.
package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// ErrDrained, as the cause why the context of Serve was cancelled, has connections ended in order,
// within seconds, where that is possible: those of HTTP/1 between two requests, those of HTTP/2 by
// GOAWAY. Any other cause has them reset.
var ErrDrained = divert.ErrDrained

// DefaultOpenTimeout is how long a laptop may take to connect to its local process before the app
// gets the request.
const DefaultOpenTimeout = 2 * time.Second

// AppDialer opens connections to the app, inside the pod's network namespace and from the pod's own
// address, so that they are not steered again. client is who is being served, so that the app can
// be told; app is the address that the client had connected to.
type AppDialer interface {
	// DialApp does not wait. Where that is needed, it gives what waits until there is a connection;
	// nil: there is one. soon says that there is something to be written at once.
	DialApp(client, app netip.AddrPort, soon bool) (s stream.Socket, wait func(context.Context) error,
		err error)
}

// Tunnels opens tunnels to laptops. OPEN has been sent when Open returns; it fails at once when
// there is no connection to the manager. ctx bounds the opening, and has no say over the tunnel
// after it.
type Tunnels interface {
	Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error)
}

// Config is what all targets of a node share.
type Config struct {
	Tunnels     Tunnels
	Log         *slog.Logger          // default slog.Default()
	OpenTimeout time.Duration         // default DefaultOpenTimeout
	Metrics     prometheus.Registerer // may be nil
}

// Proxy serves steered connections.
type Proxy struct {
	cfg     Config
	metrics *metrics
	copies  tap.Budget    // of all wiretaps
	budget  budget.Budget // of all connections
}

// New makes a Proxy. It panics if its metrics are registered twice with one registerer.
func New(cfg Config) *Proxy {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.OpenTimeout <= 0 {
		cfg.OpenTimeout = DefaultOpenTimeout
	}
	p := &Proxy{cfg: cfg, metrics: newMetrics(cfg.Metrics)}
	registerCopies(cfg.Metrics, &p.copies)
	registerBudget(cfg.Metrics, &p.budget)
	return p
}
