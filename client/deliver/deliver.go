// SPDX-License-Identifier: Apache-2.0

// Package deliver delivers the manager's connections and flows of datagrams to local ports.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// dialTimeout bounds connecting to a local port. After two seconds the node agent gives the request
// to the app.
const dialTimeout = 2 * time.Second

// Targets tells where connections go.
type Targets interface {
	// Target returns the local address of an intercept of this client, "" if the intercept is not
	// this client's. It may wait a moment for one that is being created.
	Target(ctx context.Context, open *tunnelpb.Open) (addr string)
	// Knows reports whether the intercept is this client's. It may wait as Target does.
	Knows(ctx context.Context, open *tunnelpb.Open) bool
}

// deliver connects one tunnel to its local port.
func (p *Pool) deliver(ctx context.Context, open *tunnelpb.Open, conn *tunnel.Conn) {
	log := p.log.With("intercept", open.GetInterceptNamespace()+"/"+open.GetInterceptName(), "pod",
		open.GetPod())
	if open.GetProbe() {
		if p.targets.Knows(ctx, open) {
			p.answer(conn, log, tunnelpb.Opened_OK, "")
		} else {
			p.answer(conn, log, tunnelpb.Opened_UNKNOWN, "this laptop has no such intercept")
		}
		_ = conn.Close()
		return
	}
	addr := p.targets.Target(ctx, open)
	if addr == "" {
		p.answer(conn, log, tunnelpb.Opened_UNKNOWN, "this laptop has no such intercept")
		_ = conn.Close()
		return
	}
	if open.GetDatagrams() {
		p.deliverDatagrams(ctx, addr, conn, log)
		return
	}
	local, result, err := dial(ctx, addr)
	if err != nil {
		log.Debug("no local connection", "error", err)
		p.answer(conn, log, result, err.Error())
		_ = conn.Close()
		return
	}
	if !p.answer(conn, log, tunnelpb.Opened_OK, "") {
		_ = local.SetLinger(0)
		_ = local.Close()
		conn.Reset("could not answer")
		return
	}
	log.Debug("connection delivered", "client", open.GetRemoteAddr(), "to", addr)
	// Whatever the local process does, the connection ends with the one to the manager.
	stop := context.AfterFunc(ctx, func() {
		_ = local.SetLinger(0)
		_ = local.Close()
	})
	defer stop()
	sent, received, err := tunnel.Copy(local, conn)
	log.Debug("connection ended", "client", open.GetRemoteAddr(), "received", received, "sent", sent,
		"error", err)
}

func (p *Pool) answer(conn *tunnel.Conn, log *slog.Logger, result tunnelpb.Opened_Result, message string) bool {
	if err := conn.Answer(result, message); err != nil {
		log.Debug("cannot answer", "error", err)
		return false
	}
	return true
}

// dial connects to a local port. A process that listens on localhost may do so on ::1 alone, so
// DefaultAddress stands for both.
func dial(ctx context.Context, addr string) (*net.TCPConn, tunnelpb.Opened_Result, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if host, port, splitErr := net.SplitHostPort(addr); splitErr == nil && host == "127.0.0.1" &&
		errors.Is(err, syscall.ECONNREFUSED) {
		if six, err6 := dialer.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); err6 == nil {
			conn, err = six, nil
		}
	}
	switch {
	case err == nil:
		return conn.(*net.TCPConn), tunnelpb.Opened_OK, nil // Go sets TCP_NODELAY by default
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, tunnelpb.Opened_REFUSED, fmt.Errorf("nothing listens on %s", addr)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, tunnelpb.Opened_TIMEOUT, fmt.Errorf("%s does not answer", addr)
	default:
		return nil, tunnelpb.Opened_REFUSED, fmt.Errorf("connect to %s: %w", addr, err)
	}
}
