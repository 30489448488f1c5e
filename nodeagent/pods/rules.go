// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"net/netip"
	"slices"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy"
)

// allRules are the intercepts of a target, and behind them its wiretaps.
func allRules(t *agentpb.Target) []*agentpb.Rule { return slices.Concat(t.GetRules(), t.GetWiretaps()) }

// rulesOf translates the rules of a target, and notes those that are rejected.
func rulesOf(t *agentpb.Target, rejected map[check]string) []proxy.Rule {
	var rules []proxy.Rule
	for i, r := range allRules(t) {
		rule := proxy.Rule{
			Wiretap:      i >= len(t.GetRules()),
			InterceptUID: r.GetInterceptUid(), Namespace: r.GetInterceptNamespace(), Name: r.GetInterceptName(),
			Called: r.GetCalled(), TCP: r.GetTcp(), Connected: r.GetConnected(),
		}
		if m := r.GetHttp(); m != nil && !r.GetTcp() {
			var err error
			if rule.HTTP, err = match.FromProto(m); err != nil {
				rejected[target{Target: t}.check(r)] = err.Error()
				continue
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

// kubeletOf returns how to know the kubelet. It dials from whichever of the node's addresses is
// nearest to the pod: with most networks the pod's gateway.
func kubeletOf(t *agentpb.Target, hosts []string, probers []netip.Addr) proxy.Kubelet {
	k := proxy.Kubelet{HostIPs: slices.Clone(probers)}
	for _, host := range hosts {
		if ip, err := netip.ParseAddr(host); err == nil {
			k.HostIPs = append(k.HostIPs, ip.Unmap())
		}
	}
	for _, probe := range t.GetKubeletProbes() {
		switch probe.GetKind() {
		case "http":
			k.HTTPPaths = append(k.HTTPPaths, probe.GetPath())
		case "tcp":
			k.TCP = true
		case "grpc":
			k.GRPC = true
		}
	}
	return k
}
