// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/tlsbatch"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/carry/agents"
	"sidestep.dev/sidestep/manager/carry/connections"
	"sidestep.dev/sidestep/manager/carry/environments"
	"sidestep.dev/sidestep/manager/carry/gate"
	"sidestep.dev/sidestep/manager/carry/laptops"
	"sidestep.dev/sidestep/manager/carry/outbound"
	"sidestep.dev/sidestep/manager/carry/relay"
	"sidestep.dev/sidestep/manager/certificate"
	"sidestep.dev/sidestep/manager/decide/controller"
	"sidestep.dev/sidestep/manager/decide/plan"
	"sidestep.dev/sidestep/manager/identity"
	"sidestep.dev/sidestep/manager/web"
)

const (
	// drain is how long tunnels may last after the manager has been told to stop.
	drain = 5 * time.Second
	// maxReport bounds a received message, in bytes. The largest is the report of a node with very
	// many intercepts.
	maxReport = 8 << 20
	// handshakeTimeout bounds the handshakes of TLS and HTTP/2 on a connection.
	handshakeTimeout = 20 * time.Second
)

// Manager is the whole program.
type Manager struct {
	options    Options
	log        *slog.Logger
	controller *controller.Controller
	logins     *identity.Logins
	holders    *identity.Holders
	grpc       *grpc.Server
	laptops    *grpc.Server // over upgraded requests
	connects   *web.Connects
	keeper     *certificate.Keeper // nil: another party manages the certificates
	tracker    *certificate.Tracker
	metrics    *prometheus.Registry
	// gate stands before the calls of both services.
	gate *gate.Gate
	// gates returns the gate of a port.
	gates     func(gate.Limits) *gate.Gate
	closing   chan struct{}
	listening atomic.Bool
}

// New puts the parts together. Run starts them.
func New(o Options, c client.WithWatch, log *slog.Logger) (*Manager, error) {
	m := &Manager{options: o, log: log, metrics: newMetrics(), closing: make(chan struct{})}
	config, err := m.certificates(c)
	if err != nil {
		return nil, err
	}
	m.openGates()
	shares := plan.New()
	hasBusiness := func(keyHash string) bool { return shares.Holds(keyHash) || m.logins.Proven(keyHash) }
	registry := laptops.NewRegistry(hasBusiness)
	shares.OnHeld(registry.Prove)
	guard, err := m.identities(c, registry)
	if err != nil {
		return nil, err
	}
	under := &underWay{}
	m.controller, err = controller.New(controller.Config{
		Client: c, Plan: shares, Sessions: registry, Holders: m.holders, Log: log, Grace: o.SessionGrace,
		Metrics: m.metrics, Withdrawn: under.withdrawn,
	})
	if err != nil {
		return nil, err
	}
	proofs := laptops.NewProofs(m.logins, o.OlderLaptops, under.lapsed)
	m.metrics.MustRegister(
		gauge("sidestep_manager_unproven_sessions",
			"Laptops that are connected although nobody vouches for their user.", proofs.Unproven),
		nodes{shares},
		gauge("sidestep_manager_agents", "Node agents that are connected.", shares.Attached),
		gauge("sidestep_manager_sessions", "Laptops that are connected.", registry.Len),
	)
	questions := environments.NewAgents(m.closing)
	keeper := &access.Keeper{Client: c, Guard: guard, May: m.holders.Environment, Pod: m.controller.Pod,
		Ask: questions.Ask, Log: log}
	podStreams := outbound.NewLot()
	toPod := outbound.New(outbound.Config{Plan: targets{shares}, Lot: podStreams, Pod: m.controller.Pod,
		Holder: m.holder, Table: &under.toPod, Log: log, Metrics: m.metrics})
	secure := slices.Clip(append(tunnel.ServerOptions(), append(m.gate.ServerOptions(
		m.tracker.Credentials(tlsbatch.Credentials(config))), grpc.ConnectionTimeout(handshakeTimeout))...))
	m.grpc = grpc.NewServer(append(secure, grpc.MaxRecvMsgSize(maxReport))...)
	agentpb.RegisterAgentsServer(m.grpc, agents.NewService(agents.Config{
		Authenticator: agents.NewAuthenticator(reviewing(c), o.TokenAudience, o.Namespace, o.AgentServiceAccount),
		Plan:          shares, Relay: relay.New(shares, registry, &under.tunnels, log, m.metrics),
		Environments: questions, Lot: podStreams, Log: log, Closing: m.closing,
	}))
	clients := laptops.Config{
		Registry: registry, Proofs: proofs, Log: log, Grace: o.SessionGrace, Closing: m.closing,
		Nodes: nodes{shares}.list, Environment: keeper.Release, Traffic: nodes{shares}.traffic,
		ToPod: toPod.Serve,
	}
	clientpb.RegisterClientsServer(m.grpc, laptops.NewService(clients))
	// More peers reach the HTTP ports than the gRPC port. Through them nobody reaches the node
	// agents' service, or uses up all sessions.
	clients.Limit = laptops.MaxSessions / 2
	m.laptops = grpc.NewServer(secure...)
	m.connects = web.NewConnects(log, m.metrics)
	clientpb.RegisterClientsServer(m.laptops, laptops.NewService(clients))
	return m, nil
}

// reviewing asks the API server about tokens.
func reviewing(c client.Client) func(context.Context, *authv1.TokenReview) error {
	return func(ctx context.Context, r *authv1.TokenReview) error { return c.Create(ctx, r) }
}

// openGates creates the gates of the ports.
func (m *Manager) openGates() {
	known, refused := gate.NewKnown(), gate.NewMetrics(m.metrics)
	m.gates = func(limits gate.Limits) *gate.Gate { return gate.New(limits, known, refused) }
	m.gate = m.gates(gate.Laptops())
}

// underWay has the connections that are being carried.
type underWay struct{ tunnels, toPod connections.Table }

var errWithdrawn = status.Error(codes.PermissionDenied, "the right to this connection has been withdrawn")

// withdrawn ends those of an intercept.
func (u *underWay) withdrawn(uid types.UID, toPodAlone bool) {
	u.toPod.EndIntercept(string(uid), errWithdrawn)
	if !toPodAlone {
		u.tunnels.EndIntercept(string(uid), errWithdrawn)
	}
}

// lapsed ends those of a session.
func (u *underWay) lapsed(keyHash string) {
	u.tunnels.EndSession(keyHash, errWithdrawn)
	u.toPod.EndSession(keyHash, errWithdrawn)
}

// identities makes what knows the users of sessions, and their rights.
func (m *Manager) identities(c client.WithWatch, registry *laptops.Registry) (guard *access.Guard, err error) {
	o := m.options
	guard = access.NewGuard(c, time.Now)
	m.logins, err = identity.New(identity.Config{Client: c, Namespace: o.Namespace, Guard: guard, Log: m.log,
		Now: time.Now, Changed: func(keyHash string) { registry.Changes().Add(keyHash) }})
	if err != nil {
		return nil, err
	}
	var reviews *access.Reviews
	if o.ReviewRights {
		ask := func(ctx context.Context, r *authzv1.SubjectAccessReview) error { return c.Create(ctx, r) }
		reviews = access.NewReviews(ask, cmp.Or(o.ReviewEvery, access.ReviewEvery), time.Now, m.log, m.metrics)
	}
	m.holders = identity.NewHolders(identity.HoldersConfig{Logins: m.logins, Guard: guard, Reviews: reviews,
		Older: o.OlderLaptops, Grace: o.SessionGrace, Log: m.log, Now: time.Now})
	return guard, nil
}

// holder tells the audit log whose an intercept is.
func (m *Manager) holder(interceptUID, keyHash string) (user, holder string) {
	if ic := m.controller.Intercept(interceptUID); ic != nil {
		return m.holders.User(ic, keyHash), ic.Spec.Client.Holder
	}
	return "", ""
}

// certificates returns TLS with certificates that the manager keeps itself or, if no Secret is
// named, with those that another party renews in a directory.
func (m *Manager) certificates(c client.Client) (*tls.Config, error) {
	m.tracker = certificate.NewTracker(time.Now)
	if m.options.TLSSecret == "" {
		files, err := certificate.FromDir(m.options.TLSDir)
		if err != nil {
			return nil, err
		}
		m.metrics.MustRegister(files)
		return files.ServerConfig(), nil
	}
	m.keeper = certificate.NewKeeper(certificate.KeeperConfig{
		Client: c, Namespace: m.options.Namespace, Secret: m.options.TLSSecret, ConfigMap: names.CA,
		Names: certificate.Names(m.options.Namespace), Reconnected: m.tracker.Since, Log: m.log,
		Timing: certificate.DefaultTiming(),
	})
	m.metrics.MustRegister(m.keeper)
	return m.keeper.ServerConfig(), nil
}

// listeners are the manager's ports.
type listeners struct{ grpc, http, connect net.Listener }

// Run works until ctx is done, and then gives tunnels a moment to end.
func (m *Manager) Run(ctx context.Context) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var on listeners
	for _, l := range []struct {
		name, address string
		listener      *net.Listener
	}{
		{"gRPC", m.options.GRPCAddress, &on.grpc}, {"HTTP", m.options.HTTPAddress, &on.http},
		{"laptops", m.options.ConnectAddress, &on.connect},
	} {
		listener, err := lc.Listen(ctx, "tcp", l.address)
		if err != nil {
			on.close()
			return fmt.Errorf("listen for %s on %s: %w", l.name, l.address, err)
		}
		*l.listener = listener
	}
	return m.serve(ctx, on)
}

// close closes the open listeners.
func (l listeners) close() {
	for _, one := range []net.Listener{l.grpc, l.http, l.connect} {
		if one != nil {
			_ = one.Close()
		}
	}
}

// ready returns why the manager is not ready, or nil.
func (m *Manager) ready() error {
	switch {
	case !m.listening.Load():
		return errors.New("not listening for gRPC")
	case m.keeper != nil && !m.keeper.Ready():
		return errors.New("no certificate yet (is the right to its Secret granted? the log says)")
	case !m.controller.Resolved():
		return errors.New(
			"still reading the cluster (are the CRDs installed and the rights granted? the log says)")
	}
	return nil
}

func (m *Manager) serve(ctx context.Context, on listeners) error {
	m.log.Info("starting", "version", version.Version, "grpc", on.grpc.Addr().String(), "http",
		on.http.Addr().String(), "connect", on.connect.Addr().String())
	health := web.Health(m.ready, m.metrics)
	health.Handle("GET "+tunnel.UpgradePath, m.connects.Old())
	servers := map[*http.Server]net.Listener{
		web.NewServer(health, m.log):               on.http,
		web.NewServer(m.connects.Handler(), m.log): on.connect,
	}
	group, ctx := errgroup.WithContext(ctx)
	decided := make(chan struct{})
	group.Go(func() error {
		defer close(decided)
		return m.controller.Run(ctx)
	})
	group.Go(func() error { m.logins.Run(ctx); return nil })
	group.Go(func() error { m.holders.Run(ctx); return nil })
	if m.keeper != nil {
		group.Go(func() error { m.keeper.Run(ctx); return nil })
	}
	for server, listener := range servers {
		limited := m.gates(gate.HTTP()).Listener(listener)
		group.Go(func() error {
			if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve HTTP on %s: %w", listener.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		if err := m.laptops.Serve(m.gate.Listener(m.connects)); err != nil {
			return fmt.Errorf("serve gRPC on upgraded requests: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		m.listening.Store(true)
		if err := m.grpc.Serve(m.gate.Listener(on.grpc)); err != nil {
			return fmt.Errorf("serve gRPC: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		m.log.Info("stopping")
		m.listening.Store(false)
		// The controller ends first: that this manager disconnects laptops and node agents must
		// change no status.
		<-decided
		m.stop()
		var err error
		for server := range servers {
			err = errors.Join(err, server.Close())
		}
		return err
	})
	return group.Wait()
}

// stop ends every call: sessions, assignments and parked streams at once, and tunnels when they are
// done or drain has passed.
func (m *Manager) stop() {
	close(m.closing)
	var both sync.WaitGroup
	for _, server := range []*grpc.Server{m.grpc, m.laptops} {
		both.Go(func() {
			timer := time.AfterFunc(drain, server.Stop)
			defer timer.Stop()
			server.GracefulStop()
		})
	}
	both.Wait()
}

// targets adapts the plan to carry/outbound.
type targets struct{ *plan.Plan }

func (p targets) Targets(interceptUID string) (keyHash string, all []outbound.Target) {
	keyHash, placements := p.Placements(interceptUID)
	for _, s := range placements {
		all = append(all, outbound.Target{Node: s.Node, Pod: s.Pod, Rule: s.Rule})
	}
	return keyHash, all
}

func newMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func gauge(name, help string, value func() int) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
		func() float64 { return float64(value()) })
}
