// SPDX-License-Identifier: Apache-2.0

package peername

import (
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

var (
	shownDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_shown",
		"Whether the app of a pod sees its clients' addresses (1), or the pod's own instead (0).",
		[]string{"pod"}, nil)
	failedDesc = prometheus.NewDesc("sidestep_nodeagent_client_addresses_failed_total",
		"Connections on which the app was not shown its client's address although it is shown them: "+
			"it saw the pod's own or, if addresses are required, the connection was reset.",
		[]string{"pod"}, nil)
)

// Describe implements part.Described.
func (n *Node) Describe(descs chan<- *prometheus.Desc) {
	descs <- shownDesc
	descs <- failedDesc
}

// podPart is the part of one pod.
type podPart struct {
	node *Node
	at   *part.Pod
	log  *slog.Logger
	// shown is nil while the app sees the pod's own address.
	shown    atomic.Pointer[Pod]
	why      atomic.Pointer[string] // it does
	failures atomic.Uint64
}

// Open implements part.Kind. A pod whose app cannot be shown its clients has a part all the same: a
// metric says so, and its ports are barred if addresses are required.
func (n *Node) Open(pod *part.Pod) (part.Part, error) {
	p := &podPart{node: n, at: pod, log: pod.Log}
	switch err := p.attach(); {
	case err != nil && n.required:
		p.log.Warn("the app's ports are not steered, since it cannot be shown its clients' addresses",
			"error", err)
	case err != nil:
		p.log.Warn("the app sees the pod's own address instead of its clients'", "error", err)
	}
	return p, nil
}

func (p *podPart) attach() error {
	shown, err := p.node.Attach(p.at.UID, p.at.Processes())
	if err != nil {
		why := "the app cannot be shown its clients' addresses, which this installation requires " +
			"(chart value nodeagent.clientAddresses): " + strings.ReplaceAll(err.Error(), "\n", "; ")
		p.why.Store(&why)
		return err
	}
	p.shown.Store(shown)
	return nil
}

// Steered implements part.Steered. It tries again what Open could not do, such as when the processes
// of the pod were changing; a pod that may be steered anyway keeps what it has.
func (p *podPart) Steered(on bool) {
	if !on || !p.node.required || p.shown.Load() != nil {
		return
	}
	if err := p.attach(); err == nil {
		p.log.Info("the app is shown its clients' addresses now")
		p.at.Changed()
	}
}

// Bars implements part.Guard. Whoever could pass for the pod itself might be trusted by the app.
func (p *podPart) Bars(at part.Target) string {
	if !p.node.required || at.UDP || p.shown.Load() != nil {
		return ""
	}
	return *p.why.Load()
}

// Dialing implements part.Dialer.
func (p *podPart) Dialing(client netip.AddrPort) (prepare func(fd int) error, decided bool) {
	shown := p.shown.Load()
	if shown == nil {
		return nil, false
	}
	return func(fd int) error {
		err := shown.SetPeer(fd, client)
		if err != nil && p.failures.Add(1) == 1 {
			p.log.Warn("the app cannot be shown a client's address (more of these are only counted)",
				"reset", p.node.required, "error", err)
		}
		if p.node.required {
			return err
		}
		return nil
	}, true
}

// Collect implements part.Collector.
func (p *podPart) Collect(_ *agentpb.Pod, metrics chan<- prometheus.Metric) {
	shown := 0.0
	if p.shown.Load() != nil {
		shown = 1
	}
	metrics <- prometheus.MustNewConstMetric(shownDesc, prometheus.GaugeValue, shown, p.at.Name)
	metrics <- prometheus.MustNewConstMetric(failedDesc, prometheus.CounterValue,
		float64(p.failures.Load()), p.at.Name)
}

func (p *podPart) Apply(*agentpb.Pod) error                               { return nil }
func (p *podPart) Problem(part.Target, *agentpb.Rule) (none part.Problem) { return none }
func (p *podPart) Drain() error                                           { return nil }

func (p *podPart) Close() error {
	if shown := p.shown.Load(); shown != nil {
		return shown.Close()
	}
	return nil
}
