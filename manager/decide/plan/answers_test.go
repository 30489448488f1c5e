// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/manager/decide/plan"
)

func TestAnsweredAndUnansweredRequestsAreSummedUp(t *testing.T) {
	const tls, silent = agentpb.Unanswered_LOCAL_TLS, agentpb.Unanswered_SILENT
	counted := func(pod string, answered uint64, unanswered ...*agentpb.Unanswered) *agentpb.Report {
		return &agentpb.Report{Revision: 1, Targets: []*agentpb.TargetReport{{
			PodUid: pod, Port: 80, InterceptUid: "a", Answered: &answered, Unanswered: unanswered}}}
	}
	p := plan.New()
	placements := []plan.Placement{on("n1", "p1", 80, "a", true), on("n2", "p2", 80, "a", true)}
	p.Set("a", "me", placements)
	one, two := p.Attach("n1", plan.Birth{}), p.Attach("n2", plan.Birth{})
	one.Next()
	two.Next()
	p.Changes().Take()
	assert.Empty(t, p.Answers("me"))

	one.Report(counted("p1", 5, &agentpb.Unanswered{Reason: tls, Count: 2}))
	two.Report(counted("p2", 7, &agentpb.Unanswered{Reason: tls, Count: 1}, &agentpb.Unanswered{Reason: silent, Count: 4}))
	assert.EqualValues(t, 12, *p.Answers("me")["a"].Answered)
	want := map[agentpb.Unanswered_Reason]uint64{tls: 3, silent: 4}
	assert.Equal(t, want, p.Unanswered("a"))
	assert.Equal(t, want, p.Answers("me")["a"].Unanswered)
	assert.Empty(t, p.Answers("you"))

	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	one.Report(counted("p1", 6, &agentpb.Unanswered{Reason: tls, Count: 2}))
	assert.Empty(t, p.Changes().Take(), "answers alone wake nobody")
	one.Report(counted("p1", 6, &agentpb.Unanswered{Reason: tls, Count: 3}))
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())

	placements[0].Rule = on("n1", "p1", 80, "a", false).Rule
	p.Set("a", "me", placements)
	p.Detach(two)
	want[tls]++
	assert.Equal(t, want, p.Unanswered("a"), "the rule changes, and an agent goes: what was is still true")
	p.Set("a", "me", nil)
	assert.Empty(t, p.Unanswered("a"))
}
