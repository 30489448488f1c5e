package pods

import (
	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/bpf"
)

var (
	podsDesc = prometheus.NewDesc("sidestep_nodeagent_pods",
		"Pods assigned to this node agent, by whether they are being steered.", []string{"steered"}, nil)
	claimsDesc = prometheus.NewDesc("sidestep_nodeagent_claims",
		"Claims of intercepts on ports of pods, by whether they are proved to work.", []string{"steering"}, nil)
	lookupsDesc = prometheus.NewDesc("sidestep_nodeagent_lookups_total",
		"What the kernel did with new connections to steered ports; all but steered ones went to the app.", []string{"pod", "outcome"}, nil)
)

var outcomes = map[bpf.Outcome]string{
	bpf.Steered: "steered", bpf.AgentSilent: "agent_silent", bpf.NoListener: "no_listener", bpf.NotAssigned: "not_assigned",
}

// Describe and Collect make a Set a prometheus.Collector.
func (s *Set) Describe(descs chan<- *prometheus.Desc) {
	descs <- podsDesc
	descs <- claimsDesc
	descs <- lookupsDesc
}

// Collect sends the state of the moment.
func (s *Set) Collect(metrics chan<- prometheus.Metric) {
	pods, claims := map[bool]int{}, map[bool]int{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		reports := p.report()
		for _, r := range reports {
			claims[r.GetSteering()]++
		}
		counts := p.lookups()
		if len(reports) > 0 {
			pods[counts != nil]++
		}
		for outcome, n := range counts {
			metrics <- prometheus.MustNewConstMetric(lookupsDesc, prometheus.CounterValue, float64(n), p.name, outcomes[outcome])
		}
	}
	for _, is := range []bool{false, true} {
		label := map[bool]string{false: "false", true: "true"}[is]
		metrics <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(pods[is]), label)
		metrics <- prometheus.MustNewConstMetric(claimsDesc, prometheus.GaugeValue, float64(claims[is]), label)
	}
}

func (p *pod) lookups() map[bpf.Outcome]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.site == nil {
		return nil
	}
	counts, err := p.site.program.Outcomes()
	if err != nil {
		return nil
	}
	return counts
}
