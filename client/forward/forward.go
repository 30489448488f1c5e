// Package forward brings the connections that the manager has for this laptop to local ports.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Sizes of the pool of parked streams, and its pace.
const (
	leastParked = 8
	mostParked  = 256
	shrinkAfter = 30 * time.Second // since it last grew
	retryFirst  = 100 * time.Millisecond
	retryMost   = 5 * time.Second
)

// dialTimeout bounds a connection to a local port: after two seconds the node agent has given the request to the app.
const dialTimeout = 2 * time.Second

// Targets says where connections go.
type Targets interface {
	// Target is the local address of an intercept of this client, and "" for an intercept that is not this client's. It may wait a moment for
	// one that is just being created.
	Target(ctx context.Context, open *tunnelpb.Open) (addr string)
	// Knows says whether the intercept is this client's.
	Knows(open *tunnelpb.Open) bool
}

// Pool keeps streams parked at the manager, so that a connection costs no extra round trip.
type Pool struct {
	clients clientpb.ClientsClient
	targets Targets
	log     *slog.Logger
	work    sync.WaitGroup

	mu       sync.Mutex
	parked   int // including those that are just being opened
	wanted   int
	grown    time.Time
	retry    time.Duration
	retrying bool
}

// NewPool makes a Pool for one connection to the manager.
func NewPool(clients clientpb.ClientsClient, targets Targets, log *slog.Logger) *Pool {
	return &Pool{clients: clients, targets: targets, log: log, wanted: leastParked, retry: retryFirst}
}

// Run keeps streams parked until ctx ends, and returns when all their connections have ended.
func (p *Pool) Run(ctx context.Context, wants <-chan uint32) {
	defer p.work.Wait()
	p.fill(ctx)
	for {
		select {
		case n := <-wants:
			p.mu.Lock()
			p.grow(p.parked + int(min(n, mostParked)))
			p.mu.Unlock()
			p.fill(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// grow is called with mu held.
func (p *Pool) grow(wanted int) {
	if wanted = min(wanted, mostParked); wanted > p.wanted {
		p.wanted, p.grown = wanted, time.Now()
	}
}

// fill parks streams until as many are there as are wanted.
func (p *Pool) fill(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retrying || ctx.Err() != nil {
		return
	}
	for p.parked < p.wanted {
		p.parked++
		p.work.Go(func() { p.park(ctx) })
	}
}

// park waits on one stream for one connection and sees to it.
func (p *Pool) park(ctx context.Context) {
	open, conn, err := p.accept(ctx)
	if err != nil {
		p.failed(ctx, err)
		return
	}
	p.taken()
	p.fill(ctx)
	p.deliver(ctx, open, conn)
}

func (p *Pool) accept(ctx context.Context) (*tunnelpb.Open, *tunnel.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := p.clients.Accept(ctx)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	open, conn, err := tunnel.Accept(stream, tunnel.OnClose(cancel))
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return open, conn, nil
}

// taken: a parked stream has become a connection. When more than half of them are gone before they could be replaced there is a burst, and the pool
// doubles. It shrinks by not replacing one, so that no stream is ever withdrawn while the manager is using it.
func (p *Pool) taken() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parked--
	p.retry = retryFirst
	switch {
	case p.parked < p.wanted/2:
		p.grow(2 * p.wanted)
	case p.wanted > leastParked && time.Since(p.grown) > shrinkAfter:
		p.wanted--
	}
}

// failed: a stream could not be parked, or the manager ended it.
func (p *Pool) failed(ctx context.Context, err error) {
	p.mu.Lock()
	p.parked--
	if ctx.Err() != nil || p.retrying {
		p.mu.Unlock()
		return
	}
	delay := p.retry
	p.retry, p.retrying = min(2*p.retry, retryMost), true
	p.mu.Unlock()
	p.log.Warn("cannot wait for connections", "error", err, "retry", delay)
	p.work.Go(func() {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		p.retrying = false
		p.mu.Unlock()
		p.fill(ctx)
	})
}

// deliver connects one tunnel to its local port.
func (p *Pool) deliver(ctx context.Context, open *tunnelpb.Open, conn *tunnel.Conn) {
	log := p.log.With("intercept", open.GetInterceptNamespace()+"/"+open.GetInterceptName(), "pod", open.GetPod())
	if open.GetProbe() {
		if p.targets.Knows(open) {
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
	// Whatever the local process is doing, the connection does not outlive the one to the manager.
	stop := context.AfterFunc(ctx, func() {
		_ = local.SetLinger(0)
		_ = local.Close()
	})
	defer stop()
	sent, received, err := tunnel.Copy(local, conn)
	log.Debug("connection ended", "client", open.GetRemoteAddr(), "received", received, "sent", sent, "error", err)
}

func (p *Pool) answer(conn *tunnel.Conn, log *slog.Logger, result tunnelpb.Opened_Result, message string) bool {
	if err := conn.Answer(result, message); err != nil {
		log.Debug("cannot answer", "error", err)
		return false
	}
	return true
}

// dial connects to a local port. A process that listens on localhost may do so on ::1 alone, so the usual address stands for both.
func dial(ctx context.Context, addr string) (*net.TCPConn, tunnelpb.Opened_Result, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if host, port, splitErr := net.SplitHostPort(addr); splitErr == nil && host == "127.0.0.1" && errors.Is(err, syscall.ECONNREFUSED) {
		if six, err6 := dialer.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); err6 == nil {
			conn, err = six, nil
		}
	}
	switch {
	case err == nil:
		return conn.(*net.TCPConn), tunnelpb.Opened_OK, nil // NODELAY is Go's default
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, tunnelpb.Opened_REFUSED, fmt.Errorf("nothing listens on %s", addr)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, tunnelpb.Opened_TIMEOUT, fmt.Errorf("%s does not answer", addr)
	default:
		return nil, tunnelpb.Opened_REFUSED, fmt.Errorf("connect to %s: %w", addr, err)
	}
}
