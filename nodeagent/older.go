// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/pods"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// older is what deals with connections that are older than an intercept, on the whole node.
type older struct {
	log      *slog.Logger
	steering func() bool // whether new connections are steered at this moment
	counters takeover.Counters
}

func (o *older) Open(ns pods.Namespace, pod string, port uint16,
	claims func(match.Head) string) (pods.Older, error) {
	enterable, ok := ns.(takeover.Namespace)
	if !ok {
		return nil, fmt.Errorf("the namespace of pod %s cannot be entered", pod)
	}
	p, err := takeover.Open(takeover.Config{
		Namespace: enterable, Port: port, Claims: claims, Steering: o.steering, Counters: &o.counters,
		Log: o.log.With("pod", pod),
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (o *older) register(r prometheus.Registerer) {
	c := &o.counters
	count := func(name, help, reason string, n *atomic.Uint64) {
		opts := prometheus.CounterOpts{Name: "sidestep_nodeagent_takeover_" + name, Help: help}
		if reason != "" {
			opts.ConstLabels = prometheus.Labels{"reason": reason}
		}
		r.MustRegister(prometheus.NewCounterFunc(opts, func() float64 { return float64(n.Load()) }))
	}
	const ended = "Connections from before an intercept that were ended: for a request of its own, or because they were idle or all were to be."
	count("connections_total", ended, "request", &c.TakenOver)
	count("connections_total", ended, "existing", &c.Ended)
	count("held_packets_total", "Packets on connections from before an intercept that were held back.",
		"", &c.Queued)
	count("released_packets_total",
		"Packets that were held back and let go, since they were no intercept's.", "", &c.Released)
	const left = "Requests on connections from before an intercept that may have been its own, and went to the app: the node agent had not decided in time, " +
		"there were too many to ask it, or the kernel did not end the connection."
	count("left_requests_total", left, "late", &c.TimedOut)
	count("left_requests_total", left, "no_room", &c.NoRoom)
	count("left_requests_total", left, "not_ended", &c.LeftUndestroyed)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestep_nodeagent_takeover_watched_connections",
		Help: "Connections from before an intercept that are open and being watched.",
	}, func() float64 { return float64(c.Watched.Load()) }))
}
