// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Sizes of the pool of parked streams, and its pace.
const (
	leastParked = 8
	mostParked  = 256
	shrinkAfter = 30 * time.Second // since it last grew
)

// pace returns how long a connection is not used after a stream could not be parked on it.
func pace() backoff.Backoff {
	return backoff.Backoff{First: 100 * time.Millisecond, Most: 5 * time.Second}
}

// gatherTime is how long further connections are awaited. Until they are there, each existing
// connection parks no more streams than in the end, because the manager takes streams in the order
// in which they were parked.
const gatherTime = 3 * time.Second

// Pool keeps streams parked at the manager, so that a connection costs no extra round trip. It
// spreads them over the connections to the manager.
type Pool struct {
	targets Targets
	log     *slog.Logger
	gather  time.Duration
	work    sync.WaitGroup

	mu        sync.Mutex
	lines     []*line // the first one is first
	gathering bool    // others are expected soon
	parked    int     // on all of them, including streams that are being opened
	wanted    int
	grown     time.Time
}

// line is a connection to the manager.
type line struct {
	link.Line
	first bool

	// guarded by Pool.mu
	parked, used int
	retry        backoff.Backoff
	resting      bool // until the next attempt to park a stream
}

// NewPool returns a Pool that begins with one connection to the manager.
func NewPool(clients clientpb.ClientsClient, targets Targets, log *slog.Logger) *Pool {
	first := &line{Line: link.Line{Clients: clients}, first: true, retry: pace()}
	return &Pool{targets: targets, log: log, gather: gatherTime, wanted: leastParked, lines: []*line{first}}
}

// Run keeps streams parked until ctx ends, and returns when all their connections have ended. It
// receives further connections to the manager on further, which may be nil.
func (p *Pool) Run(ctx context.Context, further <-chan link.Line, wants <-chan uint32) {
	defer p.work.Wait()
	p.lines[0].Context = ctx
	p.gathering = further != nil
	gather := time.NewTimer(p.gather)
	defer gather.Stop()
	p.fill()
	for {
		select {
		case l := <-further:
			p.add(l)
		case n := <-wants:
			p.mu.Lock()
			p.gathering = false // the manager waits
			p.grow(p.parked + int(min(n, mostParked)))
			p.mu.Unlock()
		case <-gather.C:
			p.mu.Lock()
			p.gathering = false
			p.mu.Unlock()
		case <-ctx.Done():
			return
		}
		p.fill()
	}
}

// add is called by Run alone.
func (p *Pool) add(further link.Line) {
	l := &line{Line: further, retry: pace()}
	p.mu.Lock()
	p.lines = append(p.lines, l)
	p.gathering = p.gathering && len(p.lines) <= link.Further
	p.mu.Unlock()
	p.work.Go(func() {
		<-l.Context.Done()
		p.mu.Lock()
		p.lines = slices.DeleteFunc(p.lines, func(other *line) bool { return other == l })
		p.mu.Unlock()
		p.fill()
	})
}

// grow is called with mu held.
func (p *Pool) grow(wanted int) {
	if wanted = min(wanted, mostParked); wanted > p.wanted {
		p.wanted, p.grown = wanted, time.Now()
	}
}

// due returns how many streams have to be parked now. It is called with mu held.
func (p *Pool) due() int {
	if !p.gathering {
		return p.wanted
	}
	const all = 1 + link.Further
	return (p.wanted + all - 1) / all * len(p.lines)
}

// fill parks as many streams as are due.
func (p *Pool) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.parked < p.due() {
		l := p.idlest()
		if l == nil {
			return
		}
		p.parked++
		l.parked++
		p.work.Go(func() { p.park(l) })
	}
}

// idlest chooses the connection on which to park a stream: the one with the fewest parked and in
// use, and of equals the one with fewer in use, so that requests seldom wait behind a transfer. The
// first connection also carries other calls and is the last choice. It is called with mu held.
func (p *Pool) idlest() (idlest *line) {
	for _, l := range p.lines {
		if l.resting || l.Context.Err() != nil {
			continue
		}
		if idlest == nil || cmp.Or(cmp.Compare(l.parked+l.used, idlest.parked+idlest.used),
			cmp.Compare(l.used, idlest.used)) <= 0 {
			idlest = l
		}
	}
	return idlest
}

// park waits on one stream for one connection, and delivers it.
func (p *Pool) park(l *line) {
	open, conn, err := l.accept()
	if err != nil {
		p.failed(l, err)
		return
	}
	p.taken(l)
	p.deliver(l.Context, open, conn)
	p.mu.Lock()
	l.used--
	p.mu.Unlock()
}

func (l *line) accept() (*tunnelpb.Open, *tunnel.Conn, error) {
	ctx, cancel := context.WithCancel(l.Context)
	stream, err := l.Clients.Accept(ctx)
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

// taken notes that a parked stream has become a connection. If more than half of them are gone
// before they could be replaced, there is a burst, and the pool doubles. It shrinks by not
// replacing one, so no stream is ever withdrawn while the manager is using it.
func (p *Pool) taken(l *line) {
	p.mu.Lock()
	p.parked--
	l.parked--
	l.used++
	l.retry.Reset()
	switch {
	case p.parked < p.due()/2:
		p.grow(2 * p.wanted)
	case p.wanted > leastParked && time.Since(p.grown) > shrinkAfter:
		p.wanted--
	}
	p.mu.Unlock()
	p.fill()
}

// failed notes that a stream could not be parked, or that the manager ended it. The other
// connections take over, and are not tried again for it at once.
func (p *Pool) failed(l *line, err error) {
	defer p.fill()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parked--
	l.parked--
	if l.resting || l.Context.Err() != nil {
		return
	}
	if status.Code(err) == codes.ResourceExhausted && p.parked >= leastParked {
		p.wanted = min(p.wanted, p.parked) // the manager has enough
		return
	}
	delay := l.retry.Next()
	l.resting = true
	level := slog.LevelDebug
	if l.first {
		level = slog.LevelWarn
	}
	p.log.Log(l.Context, level, "cannot wait for connections", "error", err, "retry", delay)
	p.work.Go(func() {
		if backoff.Sleep(l.Context, delay, nil) {
			return
		}
		p.mu.Lock()
		l.resting = false
		p.mu.Unlock()
		p.fill()
	})
}
