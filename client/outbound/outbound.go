// SPDX-License-Identifier: Apache-2.0

// Package outbound carries connections from the laptop into the cluster. It listens on ports of the
// laptop that lead to the same ports of intercepted pods.
package outbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
)

const (
	// Address is the address of the ports, which only this laptop reaches.
	Address = "127.0.0.1"
	// answerTimeout bounds the wait until a pod has taken a connection.
	answerTimeout = 10 * time.Second
	// bindAgain is the pause before it tries again to bind a port.
	bindAgain = 2 * time.Second
)

// Intercepts lists this client's intercepts. The channel is closed when they change.
type Intercepts func() ([]*v1alpha1.Intercept, <-chan struct{})

// Open opens a connection to a port of a pod. The caller waits for the answer to OPEN.
type Open func(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error)

// Ports follows the intercepts: a port is open as long as an intercept has it in spec.toPod.
type Ports struct {
	intercepts Intercepts
	open       Open
	log        *slog.Logger

	mu        sync.Mutex
	closed    bool
	reserved  map[*reservation]struct{}
	listeners map[int32]*listener
	failed    map[int32]string // what was logged about ports that could not be bound
}

// reservation keeps ports for an intercept that is being created.
type reservation struct {
	name  string
	ports []int32
}

// listener is one open port.
type listener struct {
	port    int32
	owner   string // name of the intercept
	accepts net.Listener
	ctx     context.Context // of its connections
	cancel  context.CancelFunc
	serving sync.WaitGroup
}

// New returns Ports. Run opens and closes them.
func New(intercepts Intercepts, open Open, log *slog.Logger) *Ports {
	return &Ports{
		intercepts: intercepts, open: open, log: log,
		reserved: map[*reservation]struct{}{}, listeners: map[int32]*listener{}, failed: map[int32]string{},
	}
}

// Reserve listens on ports for an intercept that is about to be created. The error names the first
// port that cannot be bound. The ports stay open until release is called, and then for as long as
// the intercept has them.
func (p *Ports) Reserve(name string, ports []int32) (release func(), err error) {
	p.Settle() // the ports of an intercept that was just left are closed first
	p.mu.Lock()
	defer p.mu.Unlock()
	var taken []*listener
	for _, port := range ports {
		if d := p.listeners[port]; d != nil && d.owner == name {
			continue
		} else if d != nil {
			err = inUse(port, fmt.Errorf("it leads to a pod of intercept %s", d.owner))
		} else if d, err = p.bind(name, port); err == nil {
			taken = append(taken, d)
		}
		if err != nil {
			for _, d := range taken {
				p.close(d)
			}
			return nil, err
		}
	}
	c := &reservation{name, slices.Clone(ports)}
	p.reserved[c] = struct{}{}
	return func() {
		p.mu.Lock()
		delete(p.reserved, c)
		p.mu.Unlock()
		p.Settle()
	}, nil
}

func inUse(port int32, err error) error {
	why, remedy := "it is in use", "stop what listens there"
	switch {
	case errors.Is(err, syscall.EACCES):
		why, remedy = "permission denied", "ports below 1024 are root's"
	case !errors.Is(err, syscall.EADDRINUSE):
		why = err.Error()
	}
	return reason.New(codes.AlreadyExists, reason.LocalPortTaken,
		"--to-pod needs port %d of this laptop, and cannot have it: %s", port, why).
		Advise("%s, or leave --to-pod %d out", remedy, port)
}

// bind opens a port. p.mu must be held.
func (p *Ports) bind(owner string, port int32) (*listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	accepts, err := config.Listen(context.Background(), "tcp",
		net.JoinHostPort(Address, strconv.Itoa(int(port))))
	if err != nil {
		return nil, inUse(port, err)
	}
	d := &listener{port: port, owner: owner, accepts: accepts}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	p.listeners[port] = d
	d.serving.Go(func() { p.serve(d) })
	return d, nil
}

// close closes a port and aborts its connections. p.mu must be held.
func (p *Ports) close(d *listener) {
	_ = d.accepts.Close()
	d.cancel()
	if p.listeners[d.port] == d {
		delete(p.listeners, d.port)
	}
}

// Settle opens and closes ports as the intercepts say now. It returns false if some could not be
// bound.
func (p *Ports) Settle() bool {
	all, _ := p.intercepts()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return true
	}
	wanted := map[int32]string{}
	for _, i := range all {
		for _, port := range i.Spec.ToPod {
			wanted[port] = i.Spec.Name
		}
	}
	for c := range p.reserved {
		for _, port := range c.ports {
			wanted[port] = c.name
		}
	}
	for port, d := range p.listeners {
		if wanted[port] != d.owner {
			p.close(d)
		}
	}
	complete := true
	for port, owner := range wanted {
		if p.listeners[port] != nil {
			continue
		}
		_, err := p.bind(owner, port)
		if err == nil {
			delete(p.failed, port)
			continue
		}
		complete = false
		if p.failed[port] != err.Error() {
			p.failed[port] = err.Error()
			p.log.Warn("a port does not lead to its pod", "port", port, "intercept", owner, "error", err)
		}
	}
	return complete
}

// Run keeps the ports as the intercepts say until ctx ends.
func (p *Ports) Run(ctx context.Context) {
	defer p.end()
	for {
		_, changed := p.intercepts()
		var again <-chan time.Time
		if !p.Settle() {
			again = time.After(bindAgain)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Ports) end() {
	p.mu.Lock()
	p.closed = true
	var open []*listener
	for _, d := range p.listeners {
		open = append(open, d)
		p.close(d)
	}
	p.mu.Unlock()
	for _, d := range open {
		d.serving.Wait()
	}
}

func (p *Ports) serve(d *listener) {
	for {
		conn, err := d.accepts.Accept()
		switch {
		case err == nil:
			d.serving.Go(func() { p.carry(d, conn.(*net.TCPConn)) })
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		p.log.Warn("cannot take a connection to a pod", "port", d.port, "error", err)
		select {
		case <-time.After(50 * time.Millisecond): // until file descriptors are free again
		case <-d.ctx.Done():
			return
		}
	}
}

// carry serves one connection.
func (p *Ports) carry(d *listener, local *net.TCPConn) {
	log := p.log.With("port", d.port, "intercept", d.owner)
	conn, err := p.begin(d, local)
	if err != nil {
		log.Info("no connection to a pod", "error", err)
		_ = local.SetLinger(0)
		_ = local.Close()
		return
	}
	stop := context.AfterFunc(d.ctx, func() {
		conn.Reset("the intercept has ended")
		_ = local.SetLinger(0)
		_ = local.Close()
	})
	defer stop()
	sent, received, err := tunnel.Copy(local, conn)
	log.Debug("connection to a pod ended", "sent", sent, "received", received, "error", err)
}

// begin opens a connection to whichever pod there is now, and waits until the pod has accepted it.
func (p *Ports) begin(d *listener, local net.Conn) (*tunnel.Conn, error) {
	all, _ := p.intercepts()
	i := slices.IndexFunc(all, func(i *v1alpha1.Intercept) bool {
		return i.Spec.Name == d.owner && slices.Contains(i.Spec.ToPod, d.port)
	})
	if i < 0 {
		return nil, errors.New("the intercept has not been made yet")
	}
	ctx, cancel := context.WithTimeout(d.ctx, answerTimeout)
	defer cancel()
	conn, err := p.open(d.ctx, &tunnelpb.Open{
		InterceptUid: string(all[i].UID), InterceptNamespace: all[i].Namespace, InterceptName: all[i].Name,
		RemoteAddr: local.RemoteAddr().String(), ToPort: uint32(d.port),
	})
	if err != nil {
		return nil, err
	}
	opened, err := conn.Opened(ctx)
	if err == nil && opened.GetResult() != tunnelpb.Opened_OK {
		err = errors.New(opened.GetMessage())
	}
	if err != nil {
		conn.Reset("not taken")
		return nil, err
	}
	return conn, nil
}
