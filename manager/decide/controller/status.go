// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/decide/claims"
	"sidestep.dev/sidestep/manager/decide/resolve"
	"sidestep.dev/sidestep/manager/endpoint"
)

// findings are what a status is made from.
type findings struct {
	resolution *resolve.Resolution
	invalid    *resolve.Invalid
	verdict    claims.Verdict
	connected  bool
	// stays is the port that the intercept still has while it moves to another.
	stays string
}

// coverage summarizes the pods.
type coverage struct {
	pods              []v1alpha1.PodStatus
	counted, steering int
	gates             string // why the first pod that waits for its readiness gates is not ready
	failed            string // why the first pod that failed has failed
	idle              string // why steering has no effect in the first pod where it has none
	waiting           string // what the first pod without a report waits for
	waitingPods       int
}

func (c *Controller) status(e *entry, f findings) v1alpha1.InterceptStatus {
	ic := e.intercept
	st := v1alpha1.InterceptStatus{ObservedGeneration: ic.Generation, Intercepting: "all TCP connections"}
	if f.resolution != nil && f.resolution.Protocol == v1alpha1.ProtocolUDP {
		st.Intercepting, st.Protocol = "all UDP datagrams", v1alpha1.ProtocolUDP
	}
	if ic.Spec.Mechanism == v1alpha1.MechanismHTTP {
		st.Intercepting = e.rule.String()
	}
	if ic.Spec.Wiretap {
		st.Intercepting = "copies of " + st.Intercepting
	}
	if e.ruleErr != nil {
		st.Intercepting = ""
	}
	var cov coverage
	if res := f.resolution; res != nil {
		st.Service, st.Port, st.ServicePort, st.Container = res.Service, res.Port, res.ServicePort,
			res.Container
		if f.verdict.Accepted {
			cov = c.cover(e, res)
			st.Pods, st.Coverage = cov.pods, fmt.Sprintf("%d/%d", cov.steering, cov.counted)
		}
	}
	st.State, st.Message = c.state(e, f, cov)
	if f.stays != "" && !f.verdict.Accepted {
		st.Message += fmt.Sprintf("; port %s stays intercepted", f.stays)
	}
	st.Unanswered = slices.Clone(e.unanswered.list)
	st.Conditions = append(conditions(f, &st), e.unanswered.condition(st.ObservedGeneration, time.Now()))
	return st
}

// cover asks the plan about every pod.
func (c *Controller) cover(e *entry, res *resolve.Resolution) coverage {
	var cov coverage
	for _, p := range res.Pods {
		pod := v1alpha1.PodStatus{Name: p.Name, Node: p.Spec.NodeName, Port: p.Port, Message: p.Problem}
		if p.Port == 0 {
			if p.Counts {
				cov.pods = append(cov.pods, pod)
			}
			continue
		}
		s := c.cfg.Plan.Steering(e.uid, p.Spec.NodeName, string(p.UID), uint32(p.Port))
		pod.Steering = s.Steering
		switch {
		case !s.Attached:
			pod.Message = cmp.Or(c.cfg.Plan.Refused(pod.Node),
				fmt.Sprintf("no node agent on node %s", pod.Node))
		case !s.Reported:
			pod.Message = fmt.Sprintf("waiting for the node agent on node %s", pod.Node)
		default:
			pod.Message = s.Message
		}
		if gates := endpoint.Gates(p.Pod); gates != "" && !p.Counts && cov.gates == "" {
			cov.gates = fmt.Sprintf("pod %s: %s", p.Name, gates)
		}
		failed := s.Reported && !s.Steering && s.Failed
		if !p.Counts {
			if failed && p.DeletionTimestamp == nil {
				cov.pods = append(cov.pods, pod)
			}
			continue
		}
		cov.pods = append(cov.pods, pod)
		cov.counted++
		switch {
		case s.Steering:
			cov.steering++
			cov.idle = cmp.Or(cov.idle, pod.Message)
		case failed && cov.failed == "":
			cov.failed = fmt.Sprintf("pod %s on node %s: %s", pod.Name, pod.Node, pod.Message)
		case !failed:
			if cov.waitingPods++; cov.waiting == "" {
				cov.waiting = fmt.Sprintf("pod %s: %s", pod.Name, pod.Message)
				if pod.Message == "" {
					cov.waiting = fmt.Sprintf("pod %s on node %s is being set up", pod.Name, pod.Node)
				}
			}
		}
	}
	return cov
}

func (c *Controller) state(e *entry, f findings, cov coverage) (v1alpha1.State, string) {
	ic := e.intercept
	workload := ic.Spec.Workload.Kind + " " + ic.Spec.Workload.Name
	switch {
	case f.invalid != nil:
		return v1alpha1.StateInvalid, f.invalid.Error()
	case !f.verdict.Accepted:
		return v1alpha1.StateConflict, c.conflict(f, workload)
	case !f.connected:
		meanwhile := "its requests go to the app"
		if ic.Spec.Wiretap {
			meanwhile = "nothing is copied"
		}
		return v1alpha1.StateDisconnected,
			fmt.Sprintf("the laptop of %s is not connected; %s", ic.Spec.Client.Holder, meanwhile)
	case cov.counted == 0:
		message := fmt.Sprintf("no pod of %s is ready", workload)
		if ic.Spec.Workload.Kind == "Pod" {
			message = workload + " is not ready"
		}
		if cov.gates != "" {
			message += ": " + cov.gates
		}
		return v1alpha1.StateNoPods, message
	case cov.failed != "":
		return v1alpha1.StateFailed, cov.failed
	case cov.waitingPods > 1:
		return v1alpha1.StatePending, fmt.Sprintf("%s (and %d more)", cov.waiting, cov.waitingPods-1)
	case cov.waitingPods == 1:
		return v1alpha1.StatePending, cov.waiting
	}
	return v1alpha1.StateActive, cmp.Or(cov.idle, e.judged.Note)
}

func (c *Controller) conflict(f findings, workload string) string {
	by := "another client"
	if k, ok := c.uids[f.verdict.Holder]; ok {
		holder := c.entries[k].intercept.Spec
		by = fmt.Sprintf("%s (intercept %q)", holder.Client.Holder, holder.Name)
		if k := holder.Workload.Kind + " " + holder.Workload.Name; k != workload {
			by += " by way of " + k
		}
	}
	return fmt.Sprintf("port %s of %s is intercepted by %s", portOf(f.resolution), workload, by)
}

// portOf formats a port as people write it, with its protocol if it is not TCP.
func portOf(res *resolve.Resolution) string {
	if res.Protocol == v1alpha1.ProtocolUDP {
		return res.Port + "/" + string(res.Protocol)
	}
	return res.Port
}

// conditions returns the findings as conditions, for programs.
func conditions(f findings, st *v1alpha1.InterceptStatus) []metav1.Condition {
	condition := func(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message,
			ObservedGeneration: st.ObservedGeneration}
	}
	resolved := condition(v1alpha1.ConditionResolved, metav1.ConditionTrue, "Resolved", "")
	accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "")
	switch {
	case f.invalid != nil:
		resolved = condition(v1alpha1.ConditionResolved, metav1.ConditionFalse, f.invalid.Reason,
			f.invalid.Error())
		accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionUnknown, "NotResolved", "")
	case !f.verdict.Accepted:
		accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "Conflict", st.Message)
	}
	connected := condition(v1alpha1.ConditionConnected, metav1.ConditionTrue, "SessionConnected", "")
	if !f.connected {
		connected = condition(v1alpha1.ConditionConnected, metav1.ConditionFalse, "SessionNotConnected", "")
	}
	reasons := map[v1alpha1.State]string{
		v1alpha1.StateInvalid: "NotResolved", v1alpha1.StateConflict: "NotAccepted",
		v1alpha1.StateDisconnected: "NotConnected",
		v1alpha1.StateNoPods:       "NoReadyPods", v1alpha1.StateFailed: "PodFailed",
		v1alpha1.StatePending: "PodsPending",
	}
	ready := condition(v1alpha1.ConditionReady, metav1.ConditionTrue, "AllPodsSteering", "")
	if st.State != v1alpha1.StateActive {
		ready = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, reasons[st.State], st.Message)
	}
	return []metav1.Condition{resolved, accepted, connected, ready}
}
