// SPDX-License-Identifier: Apache-2.0

// Package outbound carries connections from laptops to ports of the pods that they intercept. A node
// agent cannot be dialled, so it parks streams, and each connection takes one.
package outbound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/manager/carry/connections"
	"sidestep.dev/sidestep/manager/carry/parking"
	"sidestep.dev/sidestep/manager/carry/quota"
	"sidestep.dev/sidestep/manager/endpoint"
)

const (
	// patience is how long a connection waits for the node agent of one pod, before the next pod is
	// tried.
	patience = 1500 * time.Millisecond
	// tries is how many pods are tried.
	tries = 3
	// maxConnections bounds what one laptop has open at a time.
	maxConnections = 512
	// opening is how long a laptop may take to send OPEN.
	opening = 10 * time.Second
)

var errNoAgent = errors.New("its node agent is not connected, or older than the traffic manager")

// NewLot returns a lot for the streams of node agents, which park far fewer than it admits.
func NewLot() *parking.Lot {
	return parking.NewUninvitedLot(parking.Limits{PerPeer: 64, InAll: 20_000, Waiting: 1024})
}

// Target is a port of a pod where an intercept is in force.
type Target struct {
	Node string
	Pod  *agentpb.Pod
	Rule *agentpb.Rule
}

// Plan returns where intercepts are in force.
type Plan interface {
	// Targets returns the targets of an intercept, and the hash of the session key to which it
	// belongs. An intercept that is not accepted has none.
	Targets(interceptUID string) (keyHash string, targets []Target)
}

// Config is what a Relay needs.
type Config struct {
	Plan Plan
	// Lot has the streams that node agents have parked, by node.
	Lot *parking.Lot
	// Holder tells the audit log whose an intercept is: the user that its session has proven to act
	// for, if it has, and what the laptop calls itself.
	Holder func(interceptUID, keyHash string) (user, holder string)
	Table  *connections.Table
	// Pod returns a recent version of a pod, or nil.
	Pod     func(namespace, name string) *corev1.Pod
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Relay joins laptops' connections with pods. It is safe for concurrent use.
type Relay struct {
	cfg   Config
	open  prometheus.Gauge
	quota *quota.Quota // of connections, by hash of the session key
}

// New makes a Relay and registers its metrics.
func New(cfg Config) *Relay {
	r := &Relay{cfg: cfg, quota: quota.New(maxConnections), open: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sidestep_manager_to_pod_connections_open",
		Help: "Connections being relayed from laptops to ports of pods.",
	})}
	cfg.Metrics.MustRegister(r.open)
	return r
}

// Serve handles one connection of the laptop with this key hash, and returns the result of its
// call.
func (r *Relay) Serve(keyHash string, laptop tunnel.Stream) error {
	if !r.quota.Enter(keyHash) {
		return status.Errorf(codes.ResourceExhausted,
			"this laptop has %d connections to pods open, and may not have more", maxConnections)
	}
	defer r.quota.Leave(keyHash)
	open, err := tunnel.RecvOpenWithin(laptop, opening)
	if err != nil {
		return tunnel.OpenStatus(err, "begin a connection to a pod")
	}
	log := r.cfg.Log.With("intercept", open.GetInterceptNamespace()+"/"+open.GetInterceptName(), "port",
		open.GetToPort())
	targets, why := r.targets(keyHash, open)
	if len(targets) == 0 {
		log.Debug("connection to a pod refused", "reason", why)
		return tunnel.SendOpened(laptop, tunnelpb.Opened_UNKNOWN, why)
	}
	agent, target, err := r.reach(laptop, open, targets)
	if err != nil {
		log.Debug("connection to a pod refused", "reason", err)
		return tunnel.SendOpened(laptop, tunnelpb.Opened_TIMEOUT, err.Error())
	}
	r.open.Inc()
	defer r.open.Dec()
	err = r.carry(keyHash, laptop, agent, open, target)
	if err != nil {
		err = status.Error(codes.Aborted, err.Error())
	}
	agent.Release(err)
	return err
}

// carry joins laptop and node agent, and writes to the audit log who reaches what.
func (r *Relay) carry(keyHash string, laptop tunnel.Stream, agent *parking.Stream, open *tunnelpb.Open,
	target Target) error {
	// Names are the plan's: what the laptop calls its intercept proves nothing.
	user, holder := r.cfg.Holder(open.GetInterceptUid(), keyHash)
	log := r.cfg.Log.With("audit", "to-pod", "user", user, "holder", holder, "intercept",
		target.Rule.GetInterceptNamespace()+"/"+target.Rule.GetInterceptName(), "pod", target.Pod.GetName(),
		"podUID", target.Pod.GetUid(), "node", target.Node, "port", open.GetToPort())
	defer r.cfg.Table.Add(open.GetInterceptUid(), keyHash, agent.Release)()
	if targets, why := r.targets(keyHash, open); len(targets) == 0 { // any more
		agent.Release(status.Error(codes.PermissionDenied, why))
	}
	began := time.Now()
	log.Info("connection to a pod opened")
	err := tunnel.Relay(laptop, agent)
	log.Info("connection to a pod ended", "duration", time.Since(began), "reason", err)
	return err
}

// targets returns the pods that the laptop may reach, the best first, or the message for the
// laptop.
func (r *Relay) targets(keyHash string, open *tunnelpb.Open) (all []Target, why string) {
	owner, all := r.cfg.Plan.Targets(open.GetInterceptUid())
	if owner != keyHash || len(all) == 0 {
		// The message does not disclose whether others' intercepts exist.
		return nil, "this laptop has no such intercept, or it has no pods"
	}
	all = slices.DeleteFunc(all,
		func(p Target) bool { return !slices.Contains(p.Rule.GetToPod(), open.GetToPort()) })
	if len(all) == 0 {
		return nil, fmt.Sprintf("port %d is not among those that the intercept asks for (spec.toPod)",
			open.GetToPort())
	}
	r.rank(all)
	return all[:min(tries, len(all))], ""
}

// reach returns the stream of the first node agent that answers, once the laptop has its answer.
func (r *Relay) reach(laptop tunnel.Stream, open *tunnelpb.Open, targets []Target) (*parking.Stream, Target, error) {
	var problem error
	for _, target := range targets {
		agent, err := r.cfg.Lot.Take(laptop.Context(), target.Node, patience)
		if errors.Is(err, parking.ErrTimeout) {
			err = errNoAgent
		}
		if err == nil {
			if err = introduce(laptop, agent, open, target); err == nil {
				return agent, target, nil
			}
			agent.Release(status.Error(codes.Aborted, err.Error()))
		}
		problem = errors.Join(problem,
			fmt.Errorf("pod %s on node %s: %w", target.Pod.GetName(), target.Node, err))
		if laptop.Context().Err() != nil {
			break
		}
	}
	return nil, Target{}, problem
}

// introduce sends OPEN to a node agent and its answer to the laptop. An agent that has gone
// meanwhile has taken nothing: what the laptop has sent already can still be read.
func introduce(laptop tunnel.Stream, agent *parking.Stream, open *tunnelpb.Open, target Target) error {
	stop := context.AfterFunc(laptop.Context(),
		func() { agent.Release(status.Error(codes.Aborted, "the laptop has gone")) })
	defer stop()
	err := tunnel.SendOpen(agent, &tunnelpb.Open{
		InterceptUid: open.GetInterceptUid(), InterceptNamespace: target.Rule.GetInterceptNamespace(),
		InterceptName: target.Rule.GetInterceptName(),
		RemoteAddr:    open.GetRemoteAddr(), Pod: target.Pod.GetName(), PodUid: target.Pod.GetUid(),
		ToPort: open.GetToPort(),
	})
	var answer tunnel.Frame
	if err == nil {
		err = agent.RecvMsg(&answer)
	}
	if err != nil {
		return fmt.Errorf("its node agent has gone: %w", err)
	}
	defer answer.Free()
	return laptop.SendMsg(&answer)
}

// rank puts ready pods first, and of these the oldest.
func (r *Relay) rank(targets []Target) {
	of := map[string]*corev1.Pod{}
	for _, p := range targets {
		if pod := r.cfg.Pod(p.Pod.GetNamespace(), p.Pod.GetName()); pod != nil &&
			string(pod.UID) == p.Pod.GetUid() {
			of[p.Pod.GetUid()] = pod
		}
	}
	slices.SortStableFunc(targets, func(a, b Target) int {
		return cmp.Or(endpoint.Compare(of[a.Pod.GetUid()], of[b.Pod.GetUid()]),
			cmp.Compare(a.Pod.GetName(), b.Pod.GetName()))
	})
}
