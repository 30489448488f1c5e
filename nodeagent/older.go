package nodeagent

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/pods"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// older is what deals with connections that are older than an intercept, on the whole node.
type older struct {
	log      *slog.Logger
	counters takeover.Counters
}

func (o *older) Open(ns pods.Namespace, pod string, port uint16, claims func(match.Head) string) (pods.Older, error) {
	enterable, ok := ns.(takeover.Namespace)
	if !ok {
		return nil, fmt.Errorf("the namespace of pod %s cannot be entered", pod)
	}
	p, err := takeover.Open(takeover.Config{
		Namespace: enterable, Port: port, Claims: claims, Counters: &o.counters, Log: o.log.With("pod", pod),
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (o *older) register(r prometheus.Registerer) {
	for _, c := range []struct {
		name, help string
		labels     prometheus.Labels
		load       func() uint64
	}{
		{"connections_total", "Connections from before an intercept that were ended, by the reason.",
			prometheus.Labels{"reason": "request"}, o.counters.TakenOver.Load},
		{"connections_total", "Connections from before an intercept that were ended, by the reason.",
			prometheus.Labels{"reason": "existing"}, o.counters.Ended.Load},
		{"released_packets_total", "Packets that were held back and let go, since they were no intercept's.", nil, o.counters.Released.Load},
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sidestep_nodeagent_takeover_" + c.name, Help: c.help, ConstLabels: c.labels,
		}, func() float64 { return float64(c.load()) }))
	}
}
