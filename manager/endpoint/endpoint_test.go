// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pod(name string, age time.Duration, ready, terminating bool) *corev1.Pod {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name,
		CreationTimestamp: metav1.NewTime(now.Add(-age))}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	if ready {
		p.Status.Conditions[0].Status = corev1.ConditionTrue
	}
	if terminating {
		p.DeletionTimestamp = &metav1.Time{Time: now}
	}
	return p
}

func TestWhoServes(t *testing.T) {
	plain := &corev1.Service{}
	publishing := &corev1.Service{Spec: corev1.ServiceSpec{PublishNotReadyAddresses: true}}
	for name, c := range map[string]struct {
		ready, terminating bool
		services           []*corev1.Service
		want               State
	}{
		"ready":                     {true, false, nil, State{Serving: true}},
		"not ready":                 {false, false, []*corev1.Service{plain}, State{}},
		"ready and terminating":     {true, true, nil, State{true, true}},
		"not ready and terminating": {false, true, nil, State{Terminating: true}},
		"published although not ready": {false, false, []*corev1.Service{plain, publishing},
			State{Serving: true}},
		"published although it terminates": {false, true, []*corev1.Service{publishing}, State{true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, Of(pod("p", 0, c.ready, c.terminating), c.services))
		})
	}
}

func TestTheOldestReadyPodIsFirst(t *testing.T) {
	pods := []*corev1.Pod{nil, pod("unready", time.Hour, false, false), pod("b", time.Minute, true, false),
		pod("leaving", time.Hour, true, true), pod("a", time.Minute, true, false),
		pod("old", 2*time.Minute, true, false)}
	slices.SortFunc(pods, Compare)
	var names []string
	for _, p := range pods[:5] {
		names = append(names, p.Name)
	}
	assert.Equal(t, []string{"old", "a", "b", "leaving", "unready"}, names)
	assert.Nil(t, pods[5])
}

func TestGatesThatAreNotReadyAreKept(t *testing.T) {
	p := pod("p", 0, false, false)
	assert.Empty(t, Gates(p))
	p.Status.Conditions[0].Reason = "ReadinessGatesNotReady"
	p.Status.Conditions[0].Message = `the status of pod readiness gate "example.com/lb" is not "True", but False`
	p.Status.Conditions = append([]corev1.PodCondition{{Type: corev1.PodScheduled}}, p.Status.Conditions...)
	p.Status.Conditions = KeepReady(p.Status.Conditions)
	assert.Len(t, p.Status.Conditions, 1)
	assert.Contains(t, Gates(p), "example.com/lb")
}
