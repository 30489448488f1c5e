// SPDX-License-Identifier: Apache-2.0

// Package relay joins a node agent's tunnel to a stream of the laptop that may have it.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/manager/carry/connections"
	"sidestep.dev/sidestep/manager/carry/parking"
	"sidestep.dev/sidestep/manager/carry/quota"
	"sidestep.dev/sidestep/manager/decide/plan"
)

// patience is how long a connection waits for a connected laptop that has no stream parked. The
// node agent gives up after two seconds. An earlier answer tells it why.
const patience = 1500 * time.Millisecond

const (
	// opening is how long a node agent may take to send OPEN, which it sends together with the
	// tunnel. maxOpening bounds the tunnels of one node without OPEN.
	opening    = 10 * time.Second
	maxOpening = 256
	// maxTunnels bounds all tunnels of one node. Beyond it connections go to the app.
	maxTunnels = 8000
)

// Plan returns whose an intercept's traffic is.
type Plan interface {
	// Owner returns false for intercepts that have no placement on the node, or are not accepted.
	Owner(node, interceptUID, pod string) (plan.Owner, bool)
}

// Sessions provides streams to laptops.
type Sessions interface {
	Take(ctx context.Context, keyHash string, patience time.Duration) (*parking.Stream, error)
}

// Relay joins tunnels with streams. It is safe for concurrent use.
type Relay struct {
	plan     Plan
	sessions Sessions
	table    *connections.Table
	log      *slog.Logger
	opening  *quota.Quota // of tunnels, by node
	tunnels  *quota.Quota

	open   prometheus.Gauge
	opened *prometheus.CounterVec
	bytes  *prometheus.CounterVec
	toLap  prometheus.Counter
	toPod  prometheus.Counter
}

// New returns a relay and registers its metrics. The table knows its tunnels.
func New(plan Plan, sessions Sessions, table *connections.Table, log *slog.Logger,
	metrics prometheus.Registerer) *Relay {
	r := &Relay{
		plan: plan, sessions: sessions, table: table, log: log,
		opening: quota.New(maxOpening), tunnels: quota.New(maxTunnels),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidestep_manager_tunnels_open",
			Help: "Connections being relayed between node agents and laptops.",
		}),
		opened: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestep_manager_tunnels_total",
			Help: "Connections that node agents asked to be relayed, by outcome; RELAYED ones reached the laptop.",
		}, []string{"result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestep_manager_relayed_bytes_total", Help: "Payload relayed, by direction.",
		}, []string{"to"}),
	}
	r.toLap, r.toPod = r.bytes.WithLabelValues("laptop"), r.bytes.WithLabelValues("node")
	metrics.MustRegister(r.open, r.opened, r.bytes)
	return r
}

// Serve handles one tunnel of the agent on a node, and returns the result of its call.
func (r *Relay) Serve(node string, agent tunnel.Stream) error {
	if !r.tunnels.Enter(node) {
		return r.full(node, maxTunnels)
	}
	defer r.tunnels.Leave(node)
	if !r.opening.Enter(node) {
		return r.full(node, maxOpening)
	}
	open, err := tunnel.RecvOpenWithin(agent, opening)
	r.opening.Leave(node)
	if err != nil {
		return tunnel.OpenStatus(err, "begin a tunnel")
	}
	parked, keyHash, result, why := r.find(agent.Context(), node, open)
	if result == tunnelpb.Opened_OK {
		defer r.table.Add(open.InterceptUid, keyHash, parked.Release)()
		if _, still := r.plan.Owner(node, open.InterceptUid, open.Pod); !still {
			parked.Release(nil)
			result, why = tunnelpb.Opened_UNKNOWN, "the intercept has ended"
		}
	}
	r.opened.WithLabelValues(outcome(result)).Inc()
	if result != tunnelpb.Opened_OK {
		r.log.Debug("tunnel not relayed", "node", node, "pod", open.Pod, "intercept",
			open.InterceptNamespace+"/"+open.InterceptName, "result", result, "reason", why)
		return tunnel.SendOpened(agent, result, why)
	}
	r.open.Inc()
	defer r.open.Dec()
	if err := tunnel.SendOpen(parked, open); err != nil {
		parked.Release(status.Error(codes.Aborted, "the stream broke"))
		return tunnel.SendOpened(agent, tunnelpb.Opened_NO_CLIENT, "the connection to the laptop broke")
	}
	err = tunnel.Relay(&counted{agent, r.toLap}, &counted{parked, r.toPod})
	if err != nil {
		r.log.Debug("tunnel ended early", "node", node, "pod", open.Pod, "intercept",
			open.InterceptNamespace+"/"+open.InterceptName, "reason", err)
		err = status.Error(codes.Aborted, err.Error())
	}
	parked.Release(err)
	return err
}

// full refuses a tunnel of a node that has reached its limit.
func (r *Relay) full(node string, most int) error {
	r.opened.WithLabelValues("FULL").Inc()
	return status.Errorf(codes.ResourceExhausted, "node %s has %d tunnels", node, most)
}

func outcome(r tunnelpb.Opened_Result) string {
	if r == tunnelpb.Opened_OK {
		return "RELAYED"
	}
	return r.String()
}

// find returns the laptop's stream for a connection and the hash of its session key, or the message for
// the node agent.
func (r *Relay) find(ctx context.Context, node string, open *tunnelpb.Open) (parked *parking.Stream,
	keyHash string, result tunnelpb.Opened_Result, why string) {
	owner, ok := r.plan.Owner(node, open.InterceptUid, open.Pod)
	if !ok {
		return nil, "", tunnelpb.Opened_UNKNOWN,
			fmt.Sprintf("the manager knows of no intercept %s/%s on node %s", open.InterceptNamespace,
				open.InterceptName, node)
	}
	// The laptop gets these names from the plan, because a node agent is not trusted with them.
	open.InterceptNamespace, open.InterceptName, open.Pod = owner.Namespace, owner.Name, owner.Pod
	open.PodUid, open.ToPort = "", 0
	keyHash = owner.KeyHash
	parked, err := r.sessions.Take(ctx, keyHash, patience)
	switch {
	case err == nil:
		return parked, keyHash, tunnelpb.Opened_OK, ""
	case errors.Is(err, parking.ErrAbsent):
		return nil, keyHash, tunnelpb.Opened_NO_CLIENT, "the laptop is not connected"
	case errors.Is(err, parking.ErrTimeout):
		return nil, keyHash, tunnelpb.Opened_TIMEOUT, "the laptop took no further connection in time"
	}
	return nil, keyHash, tunnelpb.Opened_TIMEOUT, err.Error()
}

// counted counts the payload that is received on a stream.
type counted struct {
	tunnel.Stream
	bytes prometheus.Counter
}

func (c *counted) RecvMsg(m any) error {
	err := c.Stream.RecvMsg(m)
	if f, ok := m.(*tunnel.Frame); ok && err == nil && f.Kind == tunnelpb.Frame_DATA {
		c.bytes.Add(float64(f.Data.Len()))
	}
	return err
}
