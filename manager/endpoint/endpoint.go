// SPDX-License-Identifier: Apache-2.0

// Package endpoint decides which pods can receive traffic. It follows the rules by which Kubernetes
// fills EndpointSlices from pods, and so needs to watch none.
package endpoint

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// State is what an EndpointSlice would say of a pod.
type State struct {
	// Serving is set if traffic may be sent to the pod: it is ready, or a service publishes it
	// regardless.
	Serving bool
	// Terminating pods get new connections only where no other pod serves.
	Terminating bool
}

// Of returns the state of a pod that these services select.
func Of(pod *corev1.Pod, services []*corev1.Service) State {
	published := slices.ContainsFunc(services,
		func(s *corev1.Service) bool { return s.Spec.PublishNotReadyAddresses })
	return State{Serving: Ready(pod) || published, Terminating: pod.DeletionTimestamp != nil}
}

// Ready reports whether the pod's condition Ready is true, which includes its readiness gates.
func Ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// gatesNotReady is the kubelet's reason for a pod whose containers are ready and whose readiness
// gates are not. `kubectl get pods` shows such a pod as 1/1.
const gatesNotReady = "ReadinessGatesNotReady"

// Gates returns the kubelet's message about the readiness gates that keep the pod from being ready,
// or "".
func Gates(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue && c.Reason == gatesNotReady {
			return c.Message
		}
	}
	return ""
}

// KeepReady returns those of a pod's conditions that this package reads.
func KeepReady(all []corev1.PodCondition) []corev1.PodCondition {
	for _, c := range all {
		if c.Type != corev1.PodReady {
			continue
		}
		kept := corev1.PodCondition{Type: c.Type, Status: c.Status}
		if c.Reason == gatesNotReady {
			kept.Reason, kept.Message = c.Reason, c.Message
		}
		return []corev1.PodCondition{kept}
	}
	return nil
}

// Compare orders pods that are asked or connected to: ready ones first, and of these the oldest, so
// that the same pod is chosen as long as it is there. A nil pod is last.
func Compare(a, b *corev1.Pod) int {
	if a == nil || b == nil {
		return cmp.Compare(missing(a), missing(b))
	}
	return cmp.Or(cmp.Compare(unready(a), unready(b)),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
}

func missing(pod *corev1.Pod) int {
	if pod == nil {
		return 1
	}
	return 0
}

func unready(pod *corev1.Pod) int {
	if pod.DeletionTimestamp != nil || !Ready(pod) {
		return 1
	}
	return 0
}
