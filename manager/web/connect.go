// SPDX-License-Identifier: Apache-2.0

package web

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/internal/tunnel"
)

// Ports on which laptops connect, as the metric names them.
const (
	PortConnect = "connect"
	PortHTTP    = "http"
)

// Connects is a listener for the connections of HTTP requests that are upgraded to
// tunnel.UpgradeProtocol. They arrive through the API server's pod proxy, which dials the manager
// itself. A port-forward would also pass through kubelet and container runtime.
type Connects struct {
	conns   chan net.Conn
	over    chan struct{}
	close   sync.Once
	log     *slog.Logger
	counter *prometheus.CounterVec
	warned  atomic.Int64 // when the last warning about the old port was logged, in Unix seconds
}

// NewConnects returns a listener without connections, and registers its metric.
func NewConnects(log *slog.Logger, metrics prometheus.Registerer) *Connects {
	u := &Connects{conns: make(chan net.Conn), over: make(chan struct{}), log: log,
		counter: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestep_manager_connects_total",
			Help: "Upgraded requests of laptops, by port; port http is for laptops of the minor version before.",
		}, []string{"port"})}
	for _, port := range []string{PortConnect, PortHTTP} {
		u.counter.WithLabelValues(port)
	}
	metrics.MustRegister(u.counter)
	return u
}

// Handler returns the handler of the port for laptops alone.
func (u *Connects) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+tunnel.UpgradePath, func(w http.ResponseWriter, r *http.Request) {
		u.serve(w, r, PortConnect)
	})
	return mux
}

// warnEvery is the shortest pause between warnings about laptops on the old port.
const warnEvery = 10 * time.Minute

// Old returns the handler for the port of health and metrics, where laptops of the minor version
// before connect.
func (u *Connects) Old() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now, last := time.Now().Unix(), u.warned.Load()
		if now-last >= int64(warnEvery/time.Second) && u.warned.CompareAndSwap(last, now) {
			u.log.Warn("a laptop connects by the port of metrics, which ends with the next minor version: "+
				"update its client", "peer", r.RemoteAddr)
		}
		u.serve(w, r, PortHTTP)
	})
}

// Accept returns the connection of the next upgraded request.
func (u *Connects) Accept() (net.Conn, error) {
	select {
	case conn := <-u.conns:
		return conn, nil
	case <-u.over:
		return nil, net.ErrClosed
	}
}

// Close makes Accept fail, and closes connections that were not accepted.
func (u *Connects) Close() error {
	u.close.Do(func() { close(u.over) })
	return nil
}

// Addr returns an address for logs.
func (u *Connects) Addr() net.Addr { return connectsAddr{} }

type connectsAddr struct{}

func (connectsAddr) Network() string { return "http" }
func (connectsAddr) String() string  { return tunnel.UpgradePath }

func (u *Connects) serve(w http.ResponseWriter, r *http.Request, port string) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), tunnel.UpgradeProtocol) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", tunnel.UpgradeProtocol)
		http.Error(w, "this is where laptops connect: ask for an upgrade to "+tunnel.UpgradeProtocol,
			http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot be upgraded", http.StatusHTTPVersionNotSupported)
		return
	}
	if limited, ok := conn.(interface{ Pass() }); ok {
		limited.Pass() // the limits of laptops apply from here on, instead of those of requests
	}
	if buffered.Reader.Buffered() > 0 { // the client must not send before the answer
		_ = conn.Close()
		return
	}
	_, err = fmt.Fprintf(conn,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		tunnel.UpgradeProtocol)
	if err != nil {
		_ = conn.Close()
		return
	}
	u.counter.WithLabelValues(port).Inc()
	select {
	case u.conns <- conn:
	case <-u.over:
		_ = conn.Close()
	}
}
