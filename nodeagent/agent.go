// SPDX-License-Identifier: Apache-2.0

// Package nodeagent is the node agent: it takes its node's assignment from the manager, steers the
// new connections of the assigned pods' ports to itself, and serves them. It has no rights in the
// Kubernetes API.
package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/nodeagent/mesh"
	"sidestep.dev/sidestep/nodeagent/outbound"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/peername"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/pods"
	"sidestep.dev/sidestep/nodeagent/privilege"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/steer"
	"sidestep.dev/sidestep/nodeagent/tcpstats"
	"sidestep.dev/sidestep/nodeagent/uplink"
)

const (
	sweepEvery = 2 * time.Second
	// askEvery is how often an agent that stands by asks whether it is needed.
	askEvery = time.Second
)

// Config is what the flags say.
type Config struct {
	Manager     string            // host:port
	Security    []grpc.DialOption // credentials for the manager
	Node        string            // name of the Kubernetes node
	BPFFS, Proc string
	// Datapath is the way of steering; empty for the best that the kernel has.
	Datapath steer.Datapath
	// AllowHostNetwork lets pods on the node's network be intercepted.
	AllowHostNetwork bool
	// RequireClientAddresses leaves TCP ports to apps that cannot be shown their clients' addresses.
	RequireClientAddresses bool
	// Off are features that are turned off.
	Off privilege.Features
	// Linger is how long listeners are kept after their pod was let go, 0 for the default: see
	// pods.Config.
	Linger time.Duration
	// Drain is how long connections may go on once the agent was told to end.
	Drain time.Duration
	// HTTP serves health and metrics; nil for none. The agent closes it.
	HTTP    net.Listener
	Profile bool // serve profiles too
	Log     *slog.Logger
}

// agent is the parts of a running node agent.
type agent struct {
	cfg      Config
	steering *steer.Node
	uplink   *uplink.Uplink
	pods     *pods.Set
	// environments are what the manager may ask for.
	environments *environments
	metrics      *prometheus.Registry
	// standingBy is set while a younger agent has the node.
	standingBy atomic.Bool
	// looked is when the agent last looked whether it is able to serve, Unix nanoseconds.
	looked atomic.Int64
}

// Run is a node agent's life. It gives everything back when ctx ends and returns when the
// connections that were open have ended, or when Config.Drain is over. If a younger agent has taken
// over by then, it leaves to that one what it has taken.
func Run(ctx context.Context, cfg Config) error {
	a, err := newAgent(cfg)
	if err != nil {
		return err
	}
	defer a.uplink.Close()
	defer a.steering.Close()
	cfg.reportLacking()
	if err := a.steering.Open(); err != nil {
		// Without steering the agent still says to those who ask for an intercept why there is
		// none.
		cfg.Log.Error("this node cannot steer", "error", err)
	} else {
		datapath, why := a.steering.Datapath()
		cfg.Log.Info("this node can steer", "datapath", datapath, "why", why)
	}
	a.looked.Store(time.Now().UnixNano())
	life, die := context.WithCancel(context.WithoutCancel(ctx))
	defer die()
	go a.heartbeat(life)
	if cfg.HTTP != nil {
		server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}
		go func() { _ = server.Serve(cfg.HTTP) }()
		defer server.Close()
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	a.work(ctx, end)
	cfg.Log.Info("giving connections back to the apps", "drain", cfg.Drain)
	drain, cancel := context.WithTimeoutCause(life, cfg.Drain,
		fmt.Errorf("the %s for draining are over", cfg.Drain))
	defer cancel()
	if err := a.pods.Close(drain); err != nil {
		cfg.Log.Warn("not all connections have ended by themselves", "error", err)
	}
	if err := a.steering.Unload(); err != nil {
		return fmt.Errorf("remove what steers pods on this node: %w", err)
	}
	if why := context.Cause(ctx); errors.Is(why, steer.ErrRemoved) {
		return why
	}
	return nil
}

func newAgent(cfg Config) (*agent, error) {
	a := &agent{cfg: cfg, metrics: prometheus.NewRegistry()}
	a.steering = steer.NewNode(cfg.BPFFS, cfg.Node, cfg.Log, steer.WithDatapath(cfg.Datapath),
		steer.WithProc(cfg.Proc))
	toPods := outbound.New()
	a.environments = newEnvironments(a.environmentReader())
	var err error
	a.uplink, err = uplink.New(uplink.Config{
		Manager: cfg.Manager, Security: cfg.Security, Log: cfg.Log,
		Hello: a.hello, Environment: a.environments.read, ToPod: toPods.Connect,
	})
	if err != nil {
		return nil, err
	}
	px := proxy.New(proxy.Config{Tunnels: a.uplink, Log: cfg.Log, Metrics: a.metrics})
	a.pods = pods.New(pods.Config{
		Finder: podnet.NewFinder(cfg.Proc), Steering: a.steering, Tunnels: a.uplink, Serve: px.Serve,
		Parts: []part.Kind{
			toPods,
			mesh.New(cfg.Proc), // before peername: it decides what the app is shown of a sidecar
			peername.New(cfg.Proc, cfg.RequireClientAddresses),
			tcpstats.New(cfg.Proc),
			a.datagrams(),
			a.takeover(),
		},
		Log: cfg.Log, Linger: cfg.Linger, AllowHostNetwork: cfg.AllowHostNetwork,
	})
	a.register()
	return a, nil
}

// work follows the manager until ctx ends, except while a younger agent has the node. It ends ctx if
// nothing can be pinned any more.
func (a *agent) work(ctx context.Context, end context.CancelCauseFunc) {
	var sweeping sync.WaitGroup
	sweeping.Go(func() { a.sweep(ctx, end) })
	defer sweeping.Wait()
	for ctx.Err() == nil {
		a.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		a.standingBy.Store(true)
		a.pods.StandBy()
		a.cfg.Log.Info("a newer node agent has taken over, serving what is open until told to end, or until that one dies")
		a.standBy(ctx)
		a.standingBy.Store(false)
	}
}

// follow does what the manager says until a younger agent has taken over, be it the manager or the
// kernel that tells.
func (a *agent) follow(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	superseded := a.pods.Superseded()
	go func() {
		select {
		case <-superseded:
			stop()
		case <-ctx.Done():
		}
	}()
	_ = a.uplink.Run(ctx, node{a.pods, a.steering, a.environments})
}

// standBy waits until the manager has no younger agent any more, and makes this one the youngest
// then. It may lose that race against one that was merely cut off, which then stands by in its
// turn: it is ready meanwhile, so that an upgrade goes on.
func (a *agent) standBy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(askEvery):
		}
		if a.uplink.Vacant(ctx) {
			a.cfg.Log.Info("the newer node agent is gone, taking its place")
			a.steering.Renew()
			a.pods.Resume()
			return
		}
	}
}

func (a *agent) sweep(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := a.steering.Kept(); errors.Is(err, steer.ErrRemoved) {
				a.cfg.Log.Error("ending, to be started anew", "error", err)
				end(err)
				return
			}
			if err := a.pods.Sweep(); err != nil {
				a.cfg.Log.Debug("sweep pins", "error", err)
			}
		}
	}
}

// hello is what the manager tells this agent from others by.
func (a *agent) hello() *agentpb.Hello {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		a.cfg.Log.Warn("the node's boot has no name", "error", err)
	}
	return &agentpb.Hello{
		Node: a.cfg.Node, Version: version.Version, Protocol: version.Protocol, Kernel: kernel(),
		Epoch: a.steering.Epoch(), Boot: strings.TrimSpace(string(boot)), Wiretaps: true, Udp: true,
	}
}

func kernel() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}

// node is what an assignment is about, and a report: the pods, and what they have in common.
type node struct {
	*pods.Set
	steering     *steer.Node
	environments *environments
}

// Apply makes the assignment the wanted state and returns at once.
func (n node) Apply(a *agentpb.Assignment) {
	n.environments.apply(a)
	n.Set.Apply(a)
}

// Report returns the full state of the node.
func (n node) Report() *agentpb.Report {
	report := n.Set.Report()
	datapath, why := n.steering.Datapath()
	report.Datapath = &agentpb.Datapath{Name: string(datapath), Reason: why}
	return report
}

// ready says whether the agent has made its node as the manager wants it. One that stands by is:
// the younger one does.
func (a *agent) ready() error {
	if err := a.able(); err != nil {
		return err
	}
	if a.standingBy.Load() {
		return nil
	}
	if !a.pods.Assigned() {
		return errors.New("no assignment from the manager has been put into effect yet")
	}
	return nil
}
