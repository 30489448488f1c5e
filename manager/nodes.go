// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/manager/decide/plan"
)

// nodes tells laptops and Prometheus about the node agents.
type nodes struct{ *plan.Plan }

func (n nodes) list() []*clientpb.NodeAgent {
	var all []*clientpb.NodeAgent
	for _, a := range n.Agents() {
		all = append(all, &clientpb.NodeAgent{
			Node: a.Node, Attached: a.Attached, Version: a.Version, Kernel: a.Kernel,
			Datapath: a.Datapath, Reason: a.Reason,
		})
	}
	return all
}

// traffic returns, for a session, the connections to its intercepts, what its wiretaps got, and the
// requests that its laptop answered and did not answer.
func (n nodes) traffic(keyHash string) []*clientpb.InterceptTraffic {
	counted := map[string]*clientpb.InterceptTraffic{}
	for uid, t := range n.Traffic(keyHash) {
		counted[uid] = &clientpb.InterceptTraffic{InterceptUid: uid, Traffic: t}
	}
	for uid, c := range n.Copies(keyHash) {
		if counted[uid] == nil {
			counted[uid] = &clientpb.InterceptTraffic{InterceptUid: uid}
		}
		counted[uid].Copies = c
	}
	for uid, a := range n.Answers(keyHash) {
		if counted[uid] == nil {
			counted[uid] = &clientpb.InterceptTraffic{InterceptUid: uid}
		}
		counted[uid].Answered, counted[uid].Unanswered = a.Answered, a.Messages()
	}
	var all []*clientpb.InterceptTraffic
	for _, uid := range slices.Sorted(maps.Keys(counted)) {
		all = append(all, counted[uid])
	}
	return all
}

var agentDesc = prometheus.NewDesc("sidestep_manager_agent_info",
	"1 for each node agent that is connected; how it steers, none if it cannot, and why so are labels.",
	[]string{"node", "version", "kernel", "datapath", "reason"}, nil)

func (n nodes) Describe(descs chan<- *prometheus.Desc) { descs <- agentDesc }

func (n nodes) Collect(metrics chan<- prometheus.Metric) {
	for _, a := range n.Agents() {
		if !a.Attached {
			continue
		}
		if a.Datapath == "" {
			a.Datapath = "none"
		}
		metrics <- prometheus.MustNewConstMetric(agentDesc, prometheus.GaugeValue, 1, a.Node, a.Version,
			a.Kernel, a.Datapath, a.Reason)
	}
}
