// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/manager/decide/plan"
)

func TestTrafficOfASessionsInterceptsIsSummedUp(t *testing.T) {
	counted := func(pod, intercept string, n uint64) *agentpb.TargetReport {
		return &agentpb.TargetReport{PodUid: pod, Port: 80, InterceptUid: intercept, Traffic: &agentpb.Traffic{
			Opened: 2 * n, Closed: n, Aborted: 3, ReceivedBytes: 10 * n, SentBytes: 20 * n,
			RetransmittedSegments: 4, RttSamples: n, RttSumUs: 100 * n,
		}}
	}
	p := plan.New()
	p.Set("mine", "me", []plan.Placement{on("n1", "p1", 80, "mine", true), on("n2", "p2", 80, "mine", true)})
	p.Set("uncounted", "me", []plan.Placement{on("n1", "p1", 80, "uncounted", true)})
	p.Set("yours", "you", []plan.Placement{on("n1", "p1", 80, "yours", true)})
	one, two := p.Attach("n1", plan.Birth{}), p.Attach("n2", plan.Birth{})
	assert.Empty(t, p.Traffic("me"), "nobody has said anything")
	one.Next()
	two.Next()
	one.Report(&agentpb.Report{Revision: 1, Targets: []*agentpb.TargetReport{
		counted("p1", "mine", 5), counted("p1", "yours", 5), counted("p9", "mine", 1000),
		{PodUid: "p1", Port: 80, InterceptUid: "uncounted"},
	}})
	two.Report(&agentpb.Report{Revision: 1, Targets: []*agentpb.TargetReport{counted("p2", "mine", 7)}})
	mine := p.Traffic("me")
	assert.Len(t, mine, 1)
	assert.Equal(t, (&agentpb.Traffic{
		Opened: 24, Closed: 12, Aborted: 6, ReceivedBytes: 120, SentBytes: 240,
		RetransmittedSegments: 8, RttSamples: 12, RttSumUs: 1200,
	}).String(), mine["mine"].String())
	assert.EqualValues(t, 5, p.Traffic("you")["yours"].GetClosed())
	p.Detach(two)
	assert.EqualValues(t, 5, p.Traffic("me")["mine"].GetClosed(), "of a node without an agent nothing is known")
}
