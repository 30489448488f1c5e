// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"net"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

// Print returns what is shown about an intercept. severalPorts is true if its service has more than
// one port, so that the port matters.
func Print(i *v1alpha1.Intercept, severalPorts bool) *daemonpb.InterceptInfo {
	info := &daemonpb.InterceptInfo{
		Name:         i.Spec.Name,
		Namespace:    i.Namespace,
		WorkloadKind: i.Spec.Workload.Kind,
		Workload:     i.Spec.Workload.Name,
		State:        string(cmp.Or(i.Status.State, v1alpha1.StatePending)),
		Message:      i.Status.Message,
		Destination:  localAddr(i),
		Service:      cmp.Or(i.Status.Service, i.Spec.Service),
		Mechanism:    string(i.Spec.Mechanism),
		Holder:       i.Spec.Client.Holder,
		Coverage:     i.Status.Coverage,
		Id:           i.Spec.Client.Session + ":" + i.Spec.Name,
		Container:    i.Spec.Container,
		ToPod:        i.Spec.ToPod,
		Wiretap:      i.Spec.Wiretap,
	}
	if info.Destination == "" {
		info.Destination = net.JoinHostPort(cmp.Or(i.Spec.Destination.Address, DefaultAddress),
			"container port")
	}
	if severalPorts {
		info.ServicePort = cmp.Or(i.Status.Port, i.Spec.Port)
	}
	if protocolOf(i) == v1alpha1.ProtocolUDP {
		info.Protocol = string(v1alpha1.ProtocolUDP)
		if port := cmp.Or(i.Status.Port, i.Spec.Port); port != "" {
			info.ServicePort = port + "/" + info.Protocol
		}
	}
	if i.Spec.Mechanism == v1alpha1.MechanismHTTP {
		if rule, err := match.FromSpec(i.Spec.HTTP); err == nil {
			info.Conditions, info.CurlHeaders = rule.Conditions(), rule.CurlHeaders()
		}
	}
	for _, u := range i.Status.Unanswered {
		one := &daemonpb.UnansweredInfo{Reason: u.Reason, Count: uint64(max(u.Count, 0))}
		if !u.Last.IsZero() {
			one.Last = u.Last.Unix()
		}
		info.Unanswered = append(info.Unanswered, one)
	}
	for _, pod := range i.Status.Pods {
		info.Pods = append(info.Pods,
			&daemonpb.PodInfo{Name: pod.Name, Node: pod.Node, Steering: pod.Steering, Message: pod.Message})
	}
	return info
}
