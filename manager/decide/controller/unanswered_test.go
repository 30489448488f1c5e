// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestTheTallyOfUnansweredRequests(t *testing.T) {
	const tls, silent = agentpb.Unanswered_LOCAL_TLS, agentpb.Unanswered_SILENT
	type counts = map[agentpb.Unanswered_Reason]uint64
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(d time.Duration) time.Time { return start.Add(d) }
	var tl tally
	assert.Equal(t, metav1.ConditionTrue, tl.condition(1, start).Status)

	tl.take(counts{tls: 2}, start)
	c := tl.condition(1, start)
	assert.Equal(t, metav1.ConditionFalse, c.Status)
	assert.Equal(t, "LocalTLS", c.Reason)
	assert.Equal(t, "requests that match were not answered by the laptop: the local process speaks only TLS — "+
		"have it listen without TLS: requests reach it as the app in the pod gets them", c.Message)

	tl.take(counts{tls: 2, silent: 1}, after(10*time.Second))
	assert.Equal(t, []string{"Silent", "LocalTLS"}, []string{tl.list[0].Reason, tl.list[1].Reason}, "the newest first")
	assert.Equal(t, "LocalTLS", tl.condition(1, after(11*time.Second)).Reason, "it is still true")
	assert.Equal(t, "Silent", tl.condition(1, after(61*time.Second)).Reason)
	assert.Equal(t, metav1.ConditionTrue, tl.condition(1, after(71*time.Second)).Status)

	tl.take(counts{silent: 1}, after(80*time.Second))
	assert.Len(t, tl.list, 2, "a pod that goes takes nothing away")
	tl.take(counts{tls: 1, silent: 1}, after(90*time.Second))
	assert.EqualValues(t, 2, tl.list[1].Count)
	tl.take(counts{tls: 2, silent: 1}, after(100*time.Second))
	assert.Equal(t, "LocalTLS", tl.condition(1, after(100*time.Second)).Reason, "a node agent that started anew counts on")
}

func TestTheTallyOfAManagerThatTakesOver(t *testing.T) {
	then := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	tl := tally{list: []v1alpha1.Unanswered{{Reason: "LocalTLS", Count: 3, Last: then}}}
	tl.take(map[agentpb.Unanswered_Reason]uint64{agentpb.Unanswered_LOCAL_TLS: 3}, then.Add(time.Hour))
	assert.Equal(t, []v1alpha1.Unanswered{{Reason: "LocalTLS", Count: 3, Last: then}}, tl.list)
}
