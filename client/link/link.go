// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tlsbatch"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Timing of a link. The zero value of each field means its default.
type Timing struct {
	Ping    time.Duration // between pings; 2 s
	GiveUp  time.Duration // without a message from the manager; 8 s
	First   time.Duration // delay of the first new attempt; 100 ms
	Early   time.Duration // greatest delay in the first minute of an outage, when a restart is likely; 1 s
	Late    time.Duration // greatest delay afterwards; 5 s
	Connect time.Duration // for one attempt; 20 s
	Again   time.Duration // delay of the first new attempt at a further connection; 1 s
	Rare    time.Duration // greatest delay of such an attempt; 1 minute
	Ready   time.Duration // how long a new session waits for a manager that is starting; 30 s
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	def(&t.Ping, 2*time.Second)
	def(&t.GiveUp, 8*time.Second)
	def(&t.First, 100*time.Millisecond)
	def(&t.Early, time.Second)
	def(&t.Late, 5*time.Second)
	def(&t.Connect, 20*time.Second)
	def(&t.Again, time.Second)
	def(&t.Rare, time.Minute)
	def(&t.Ready, 30*time.Second)
	return t
}

// Config says who connects, and how.
type Config struct {
	Session string // UUID
	Key     []byte // the session key
	Holder  string // user@host
	// Dial connects to the manager, below TLS.
	Dial func(context.Context) (*Way, error)
	// Serve serves the manager's connections from the manager's hello until ctx ends with the
	// connection. It receives the further connections on further, and on wants how many more Accept
	// streams the manager wants.
	Serve  func(ctx context.Context, clients clientpb.ClientsClient, further <-chan Line, wants <-chan uint32)
	Log    *slog.Logger
	Timing Timing
	// Wall reads the wall clock, which shows that the laptop slept. Nil means the real one.
	Wall func() time.Time
	// Dead is called when existing connections can no longer be trusted, because the laptop slept
	// or nothing was received for too long. A request over one of them would wait forever. It may
	// be nil.
	Dead func()
}

// Link is a connection to the manager that reconnects.
type Link struct {
	Config
	wake  chan struct{} // the laptop woke up, or a caller wants a new attempt now
	wary  bool          // the last connection did not last; used by Run alone
	heard atomic.Int64  // when the manager was last heard, by the wall clock, in Unix nanoseconds

	mu      sync.Mutex
	state   State
	changed chan struct{}
	abort   context.CancelFunc // of the last attempt to connect
}

// New returns a Link. Run connects.
func New(c Config) *Link {
	c.Timing = c.Timing.withDefaults()
	if c.Wall == nil {
		c.Wall = func() time.Time { return time.Now().Round(0) }
	}
	return &Link{Config: c, wake: make(chan struct{}, 1), changed: make(chan struct{})}
}

// State returns the state, and a channel that is closed when it changes.
func (l *Link) State() (State, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.changed
}

// Wait returns the state once wanted is true for it, or as it is when ctx ends.
func (l *Link) Wait(ctx context.Context, wanted func(State) bool) State {
	for {
		state, changed := l.State()
		if wanted(state) {
			return state
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state
		}
	}
}

// Hurry makes a waiting Link try again at once, and a connected one check its connection.
func (l *Link) Hurry() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hear notes that something was received from the manager.
func (l *Link) hear() { l.heard.Store(l.Wall().UnixNano()) }

func (l *Link) lastHeard() time.Time {
	if at := l.heard.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// abortConnect ends an attempt to connect that was begun before the laptop slept.
func (l *Link) abortConnect() {
	l.mu.Lock()
	abort := l.abort
	l.mu.Unlock()
	if abort != nil {
		abort()
	}
}

func (l *Link) dead() {
	if l.Dead != nil {
		l.Dead()
	}
}

func (l *Link) set(change func(*State)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.state)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Run connects, again and again, until ctx ends.
func (l *Link) Run(ctx context.Context) {
	var watch sync.WaitGroup
	defer watch.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch.Go(func() { l.watchSleep(ctx) })

	pace := backoff.Backoff{First: l.Timing.First, Most: l.Timing.Early, Factor: 1.6}
	down, said := time.Now(), ""
	for ctx.Err() == nil {
		began := time.Now()
		connected, err := l.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if connected > l.Timing.Late {
			pace.Reset()
			down = time.Now()
		}
		if connected > 0 {
			said, l.wary = "", connected < steady
		}
		heard := l.lastHeard()
		l.set(func(s *State) { s.Connected, s.Err, s.clients, s.Heard = false, err, nil, heard; s.Attempts++ })
		if errors.Is(err, errSilent) || connected == 0 && time.Since(began) > l.Timing.GiveUp {
			l.dead()
		}
		if err.Error() != said { // an outage may last all night
			said = err.Error()
			l.Log.Warn("not connected to the traffic manager", "error", err)
		}
		if backoff.Sleep(ctx, pace.Next(), l.wake) { // Hurry was called
			pace.Reset()
			down = time.Now()
		}
		pace.Most = l.Timing.Early
		if time.Since(down) > time.Minute {
			pace.Most = l.Timing.Late
		}
	}
}

// watchSleep calls Hurry when the wall clock has run ahead of the ticks: the laptop was asleep, and
// its connections are most likely dead.
func (l *Link) watchSleep(ctx context.Context) {
	const slack = 4 * time.Second
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := l.Wall()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := l.Wall()
		if asleep := now.Sub(last) - tick; asleep > slack {
			l.Log.Info("the laptop was asleep", "for", asleep.Round(time.Second))
			if state, _ := l.State(); !state.Connected { // otherwise a ping finds out
				l.dead()
				l.abortConnect()
			}
			l.Hurry()
		}
		last = now
	}
}

// connect makes one connection and keeps it until it ends, which is always with an error. It
// returns how long it was connected.
func (l *Link) connect(ctx context.Context) (time.Duration, error) {
	dialing, cancel := context.WithTimeout(ctx, l.Timing.Connect)
	defer cancel()
	l.mu.Lock()
	l.abort = cancel
	l.mu.Unlock()
	way, err := l.Dial(dialing)
	if err != nil {
		return 0, err
	}
	flow := &metered{Conn: way.Conn}
	conn, err := l.client(flow, way.TLS)
	if err != nil {
		_ = flow.Close()
		return 0, err
	}
	defer func() {
		_ = conn.Close()
		_ = flow.Close()
	}()
	ctx, end := context.WithCancel(ctx)
	defer end()
	h, err := l.greet(ctx, clientpb.NewClientsClient(conn))
	if err != nil {
		way.Failed()
		return 0, explain(err)
	}
	since, before := time.Now(), l.lastHeard()
	l.set(func(s *State) {
		*s = State{
			Connected: true, ManagerVersion: h.hello.GetVersion(),
			Grace: time.Duration(h.hello.GetGraceSeconds()) * time.Second, clients: h.clients,
			Since: l.Wall(), Heard: before,
			Wiretaps: h.hello.GetWiretaps(),
		}
	})
	l.hear()
	l.Log.Info("connected to the traffic manager", "version", h.hello.GetVersion(), "by", way.By)
	err = l.maintain(ctx, end, h, flow, way)
	return time.Since(since), explain(err)
}

// client returns a gRPC client over one connection. When the connection ends, so does the client.
func (l *Link) client(raw net.Conn, tlsConfig *tls.Config) (*grpc.ClientConn, error) {
	only := make(chan net.Conn, 1)
	only <- raw
	options := append(tunnel.DialOptions(),
		grpc.WithTransportCredentials(tlsbatch.Credentials(tlsConfig)),
		grpc.WithPerRPCCredentials(sessionKey(hex.EncodeToString(l.Key))),
		grpc.WithIdleTimeout(0),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-only:
				return c, nil
			default:
				return nil, errEnded
			}
		}),
	)
	conn, err := grpc.NewClient("passthrough:///sidestep-manager", options...)
	if err != nil {
		return nil, fmt.Errorf("connect to the traffic manager: %w", err)
	}
	return conn, nil
}

// sessionKey sends the session key with every call.
type sessionKey string

func (k sessionKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{names.SessionKeyMetadata: string(k)}, nil
}

func (sessionKey) RequireTransportSecurity() bool { return true }

// errRefused means that the manager itself refused this client.
var errRefused = errors.New("the traffic manager refused")

func explain(err error) error {
	s, ok := status.FromError(err)
	if !ok || err == nil {
		return err
	}
	if why := reason.Of(err); why != "" {
		here := reason.New(s.Code(), why, "%s", reason.Message(err))
		if advice := reason.Advice(err); advice != "" {
			return here.Advise("%s", advice)
		}
		return here
	}
	switch s.Code() {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition,
		codes.Unimplemented:
		return fmt.Errorf("%w: %s", errRefused, s.Message())
	default:
		return fmt.Errorf("the traffic manager: %s", s.Message())
	}
}
