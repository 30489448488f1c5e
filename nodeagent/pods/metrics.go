// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/part"
)

var (
	podsDesc = prometheus.NewDesc("sidestep_nodeagent_pods",
		"Pods assigned to this node agent, by whether they are being steered.", []string{"steered"}, nil)
	claimsDesc = prometheus.NewDesc("sidestep_nodeagent_claims",
		"Claims of intercepts on ports of pods, by whether they are proved to work.", []string{"steering"}, nil)
	lookupsDesc = prometheus.NewDesc("sidestep_nodeagent_lookups_total",
		"What the kernel did with new connections to steered ports; all but steered ones went to the app.", []string{"pod", "outcome"}, nil)
	targetDesc = prometheus.NewDesc("sidestep_nodeagent_target_info",
		"1 for each intercept (namespace/name) of a port of a pod.", []string{"pod", "port", "intercept"}, nil)
)

var outcomes = map[bpf.Outcome]string{
	bpf.Steered: "steered", bpf.AgentSilent: "agent_silent", bpf.NoListener: "no_listener",
	bpf.NotAssigned: "not_assigned", bpf.TimeWait: "time_wait",
}

// Describe implements prometheus.Collector.
func (s *Set) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{podsDesc, claimsDesc, lookupsDesc, targetDesc} {
		descs <- d
	}
	for _, kind := range s.cfg.Parts {
		if d, ok := kind.(part.Described); ok {
			d.Describe(descs)
		}
	}
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(metrics chan<- prometheus.Metric) {
	pods, steered := map[bool]int{}, map[bool]int{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		if p.assigned() == nil {
			continue // its successor may have the same name
		}
		reports := p.report()
		for _, r := range reports {
			steered[r.GetSteering()]++
		}
		counted := p.collect(metrics)
		if len(reports) > 0 {
			pods[counted]++
		}
	}
	for _, is := range []bool{false, true} {
		label := strconv.FormatBool(is)
		metrics <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(pods[is]), label)
		metrics <- prometheus.MustNewConstMetric(claimsDesc, prometheus.GaugeValue, float64(steered[is]), label)
	}
}

// collect sends the metrics of the pod. It reports whether the pod has a steering program.
func (p *pod) collect(metrics chan<- prometheus.Metric) (steered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.collectTargets(metrics)
	if p.opened == nil {
		return false
	}
	for _, one := range p.opened.parts {
		if c, ok := one.(part.Collector); ok {
			c.Collect(p.wanted, metrics)
		}
	}
	counts, err := p.opened.at.Program.Outcomes()
	for outcome, n := range counts {
		metrics <- prometheus.MustNewConstMetric(lookupsDesc, prometheus.CounterValue, float64(n), p.name,
			outcomes[outcome])
	}
	return err == nil
}

// collectTargets tells whose intercepts the ports have. p.mu must be held.
func (p *pod) collectTargets(metrics chan<- prometheus.Metric) {
	for _, t := range p.wanted.GetTargets() {
		named := map[string]bool{}
		for _, r := range allRules(t) {
			name := r.GetInterceptNamespace() + "/" + r.GetInterceptName()
			if !named[name] {
				metrics <- prometheus.MustNewConstMetric(targetDesc, prometheus.GaugeValue, 1, p.name,
					fmt.Sprint(t.GetPort()), name)
			}
			named[name] = true
		}
	}
}
