// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
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
	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/tlsbatch"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/carry/agents"
	"sidestep.dev/sidestep/manager/carry/environments"
	"sidestep.dev/sidestep/manager/carry/laptops"
	"sidestep.dev/sidestep/manager/carry/outbound"
	"sidestep.dev/sidestep/manager/carry/relay"
	"sidestep.dev/sidestep/manager/certificate"
	"sidestep.dev/sidestep/manager/decide/controller"
	"sidestep.dev/sidestep/manager/decide/plan"
)

const (
	// drain is how long tunnels may go on after the manager has been told to stop.
	drain = 5 * time.Second
	// maxReport is the size in bytes of the largest message that is taken in: the report of a node
	// with very many intercepts.
	maxReport = 8 << 20
	// handshakeTimeout bounds TLS's, once a request has been upgraded.
	handshakeTimeout = 20 * time.Second
)

// Manager is the whole program.
type Manager struct {
	options    Options
	log        *slog.Logger
	controller *controller.Controller
	grpc       *grpc.Server
	laptops    *grpc.Server // over upgraded requests
	upgrades   *upgrades
	metrics    *prometheus.Registry
	closing    chan struct{}
	listening  atomic.Bool
}

// New puts the parts together. Nothing runs yet.
func New(o Options, c client.WithWatch, log *slog.Logger) (*Manager, error) {
	files, err := certificate.FromDir(o.TLSDir)
	if err != nil {
		return nil, err
	}
	m := &Manager{options: o, log: log, metrics: newMetrics(), closing: make(chan struct{})}
	// The plan and the registry tell the controller, which is made from them.
	shares := plan.New(func(uids []types.UID) { m.controller.AgentsChanged(uids) })
	registry := laptops.NewRegistry(func(keyHash string) { m.controller.SessionChanged(keyHash) })
	m.controller, err = controller.New(controller.Config{
		Client: c, Plan: shares, Sessions: registry, Log: log, Grace: o.SessionGrace, Metrics: m.metrics,
	})
	if err != nil {
		return nil, err
	}
	m.metrics.MustRegister(
		nodes{shares},
		gauge("sidestep_manager_agents", "Node agents that are connected.", shares.Attached),
		gauge("sidestep_manager_sessions", "Laptops that are connected.", registry.Len),
	)
	questions := environments.NewAgents(m.closing)
	keeper := &access.Keeper{Client: c, Pod: m.controller.Pod, Ask: questions.Ask, Log: log}
	podStreams := outbound.NewAgents(m.closing)
	toPod := outbound.New(outbound.Config{Plan: places{shares}, Agents: podStreams, Pod: m.controller.Pod,
		Log: log, Metrics: m.metrics})
	review := func(ctx context.Context, r *authv1.TokenReview) error { return c.Create(ctx, r) }
	secure := slices.Clip(append(tunnel.ServerOptions(),
		grpc.Creds(tlsbatch.Credentials(files.ServerConfig()))))
	m.grpc = grpc.NewServer(append(secure, grpc.MaxRecvMsgSize(maxReport))...)
	agentpb.RegisterAgentsServer(m.grpc, agents.NewService(agents.Config{
		Authenticator: agents.NewAuthenticator(review, o.TokenAudience, o.Namespace, o.AgentServiceAccount),
		Plan:          shares, Relay: relay.New(shares, registry, log, m.metrics),
		Environments: questions, ToPod: podStreams, Log: log, Closing: m.closing,
	}))
	clients := laptops.Config{
		Registry: registry, Log: log, Grace: o.SessionGrace, Closing: m.closing,
		Nodes: nodes{shares}.list, Environment: keeper.Release, Traffic: nodes{shares}.traffic,
		ToPod: toPod.Serve,
	}
	clientpb.RegisterClientsServer(m.grpc, laptops.NewService(clients))
	// The HTTP port is open to whoever may read metrics, unlike that for gRPC: nobody gets to the
	// node agents' service there, nor uses up all sessions.
	clients.Limit = laptops.MaxSessions / 2
	m.laptops, m.upgrades = grpc.NewServer(append(secure, grpc.ConnectionTimeout(handshakeTimeout))...),
		newUpgrades()
	clientpb.RegisterClientsServer(m.laptops, laptops.NewService(clients))
	return m, nil
}

// Run works until ctx is done, then gives tunnels a moment to end.
func (m *Manager) Run(ctx context.Context) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	grpcListener, err := lc.Listen(ctx, "tcp", m.options.GRPCAddress)
	if err != nil {
		return fmt.Errorf("listen for gRPC: %w", err)
	}
	httpListener, err := lc.Listen(ctx, "tcp", m.options.HTTPAddress)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for HTTP: %w", err), grpcListener.Close())
	}
	return m.serve(ctx, grpcListener, httpListener)
}

func (m *Manager) serve(ctx context.Context, grpcListener, httpListener net.Listener) error {
	m.log.Info("starting", "version", version.Version, "grpc", grpcListener.Addr().String(), "http",
		httpListener.Addr().String())
	web := &http.Server{Handler: m.web(), ReadHeaderTimeout: 5 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	decided := make(chan struct{})
	group.Go(func() error {
		defer close(decided)
		return m.controller.Run(ctx)
	})
	group.Go(func() error {
		if err := web.Serve(httpListener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := m.laptops.Serve(m.upgrades); err != nil {
			return fmt.Errorf("serve gRPC on upgraded requests: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		m.listening.Store(true)
		if err := m.grpc.Serve(grpcListener); err != nil {
			return fmt.Errorf("serve gRPC: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		m.log.Info("stopping")
		m.listening.Store(false)
		// The controller goes first: that this manager lets go of laptops and node agents is no
		// news about them.
		<-decided
		m.stop()
		return web.Close()
	})
	return group.Wait()
}

// stop ends every call: sessions, assignments and parked streams at once, tunnels when they are
// done or their time is up.
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

// places gives the plan the shape that connections to pods ask for.
type places struct{ *plan.Plan }

func (p places) Places(interceptUID string) (keyHash string, all []outbound.Place) {
	keyHash, spots := p.Spots(interceptUID)
	for _, s := range spots {
		all = append(all, outbound.Place{Node: s.Node, Pod: s.Pod, Rule: s.Rule})
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
