// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/manager/decide/plan"
)

// changes collects what the plan tells its owner.
func on(node, pod string, port uint32, intercept string, connected bool) plan.Placement {
	return plan.Placement{
		Node: node, Port: port, Pod: &agentpb.Pod{Uid: pod, Name: pod, Ips: []string{"10.0.0.1"}},
		Rule:   &agentpb.Rule{InterceptUid: intercept, InterceptName: intercept, Connected: connected},
		Probes: []*agentpb.Probe{{Kind: "tcp"}},
	}
}

func says(revision uint64, pod, intercept string, steering bool) *agentpb.Report {
	return &agentpb.Report{Revision: revision,
		Targets: []*agentpb.TargetReport{{PodUid: pod, Port: 80, InterceptUid: intercept, Steering: steering}}}
}

func woken(s *plan.Stream) bool {
	select {
	case <-s.Wake():
		return true
	default:
		return false
	}
}

func TestAssignmentIsTheWholeNode(t *testing.T) {
	p := plan.New()
	p.Set("b", "hash-b", []plan.Placement{on("n1", "p1", 80, "b", true), on("n1", "p2", 80, "b", true),
		on("n2", "p3", 80, "b", true)})
	p.Set("a", "hash-a", []plan.Placement{on("n1", "p1", 80, "a", false), on("n1", "p1", 81, "a", false)})
	s := p.Attach("n1", plan.Birth{})
	assert.True(t, woken(s), "there is something to send at the start, if only that there is nothing to do")
	a := s.Next()
	assert.EqualValues(t, 1, a.Revision)
	assert.True(t, a.Environments, "the rules say whose environment may be read")
	assert.Len(t, a.Pods, 2)
	assert.Equal(t, "p1", a.Pods[0].Uid)
	assert.Len(t, a.Pods[0].Targets, 2)
	assert.EqualValues(t, 80, a.Pods[0].Targets[0].Port)
	assert.Len(t, a.Pods[0].Targets[0].Rules, 2)
	assert.Len(t, a.Pods[0].Targets[0].KubeletProbes, 1)
	assert.EqualValues(t, 81, a.Pods[0].Targets[1].Port)
	assert.Equal(t, "p2", a.Pods[1].Uid)

	p.Set("b", "hash-b", nil)
	assert.True(t, woken(s))
	a = s.Next()
	assert.EqualValues(t, 2, a.Revision)
	assert.Len(t, a.Pods, 1)
	assert.Len(t, a.Pods[0].Targets[0].Rules, 1)
}

func TestOnlyNodesWithAChangeAreWoken(t *testing.T) {
	p := plan.New()
	one, two := p.Attach("n1", plan.Birth{}), p.Attach("n2", plan.Birth{})
	assert.True(t, woken(one) && woken(two))
	both := []plan.Placement{on("n1", "p1", 80, "a", true), on("n2", "p2", 80, "a", true)}
	p.Set("a", "hash", both)
	assert.True(t, woken(one) && woken(two))
	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", true), on("n2", "p2", 80, "a", true)})
	assert.False(t, woken(one) || woken(two), "the same again")
	p.Set("a", "hash", both[:1])
	assert.False(t, woken(one))
	assert.True(t, woken(two))
	p.Set("a", "hash", both[:1])
	p.Set("a", "hash", nil)
	assert.True(t, woken(one))
	assert.False(t, woken(two))
}

func TestSteeringIsBelievedOnlyOfTheRuleAsItIs(t *testing.T) {
	p := plan.New()
	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", true)})
	assert.Equal(t, plan.Steering{}, p.Steering("a", "n1", "p1", 80), "no agent")

	s := p.Attach("n1", plan.Birth{})
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	assert.Equal(t, plan.Steering{Attached: true}, p.Steering("a", "n1", "p1", 80))
	s.Report(says(0, "p1", "a", true))
	assert.Empty(t, p.Changes().Take(), "it cannot know yet")
	assert.Equal(t, plan.Steering{Attached: true}, p.Steering("a", "n1", "p1", 80))

	s.Report(says(s.Next().Revision, "p1", "a", true))
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	assert.Equal(t, plan.Steering{Attached: true, Reported: true, Steering: true},
		p.Steering("a", "n1", "p1", 80))
	s.Report(says(1, "p1", "a", true))
	assert.Empty(t, p.Changes().Take(), "nothing new")

	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", false)})
	assert.False(t, p.Steering("a", "n1", "p1", 80).Steering, "the rule has changed")
	s.Report(says(1, "p1", "a", true))
	assert.False(t, p.Steering("a", "n1", "p1", 80).Steering, "a report about the rule as it was")
	s.Report(says(s.Next().Revision, "p1", "a", true))
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	assert.True(t, p.Steering("a", "n1", "p1", 80).Steering)

	s.Report(&agentpb.Report{Revision: 2})
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	assert.Equal(t, plan.Steering{Attached: true}, p.Steering("a", "n1", "p1", 80), "it no longer speaks of it")
}

func TestReportsAreForgottenWithTheirStream(t *testing.T) {
	p := plan.New()
	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", true)})
	first := p.Attach("n1", plan.Birth{})
	first.Report(says(first.Next().Revision, "p1", "a", true))
	p.Changes().Take()

	second := p.Attach("n1", plan.Birth{})
	assert.Equal(t, 1, p.Attached())
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	select {
	case <-first.Replaced():
	default:
		t.Error("the first stream is to end")
	}
	assert.False(t, p.Steering("a", "n1", "p1", 80).Steering)
	first.Report(says(1, "p1", "a", true))
	p.Detach(first)
	assert.Empty(t, p.Changes().Take(), "the first stream has no say any more")
	assert.Empty(t, first.Next().Pods)
	assert.True(t, p.Steering("a", "n1", "p1", 80).Attached)

	p.Detach(second)
	assert.Equal(t, []types.UID{"a"}, p.Changes().Take())
	assert.Equal(t, plan.Steering{}, p.Steering("a", "n1", "p1", 80))
	assert.Zero(t, p.Attached())
}

func TestTheYoungestAgentHasTheNode(t *testing.T) {
	p := plan.New()
	old := p.Attach("n1", plan.Birth{Boot: "b", Epoch: 1})
	again := p.Attach("n1", plan.Birth{Boot: "b", Epoch: 1})
	<-old.Replaced()
	assert.False(t, old.Superseded(), "it is the same agent on a new connection")
	young := p.Attach("n1", plan.Birth{Boot: "b", Epoch: 2})
	<-again.Replaced()
	assert.True(t, again.Superseded())
	assert.Nil(t, p.Attach("n1", plan.Birth{Boot: "b", Epoch: 1}))
	assert.Equal(t, 1, p.Attached())
	p.Detach(young)
	old = p.Attach("n1", plan.Birth{Boot: "b", Epoch: 1})
	assert.NotNil(t, old, "the younger one is gone")
	rebooted := p.Attach("n1", plan.Birth{Boot: "c", Epoch: 0})
	assert.NotNil(t, rebooted, "nothing of a former boot can be alive")
	<-old.Replaced()
	assert.Equal(t, 1, p.Attached())
}

func TestWhoseTrafficItIs(t *testing.T) {
	p := plan.New()
	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", true), on("n1", "p2", 80, "a", true)})
	owner, ok := p.Owner("n1", "a", "p2")
	assert.True(t, ok)
	assert.Equal(t, plan.Owner{KeyHash: "hash", Name: "a", Pod: "p2"}, owner)
	owner, ok = p.Owner("n1", "a", "p3")
	assert.True(t, ok)
	assert.Empty(t, owner.Pod, "another pod, or none")
	_, ok = p.Owner("n2", "a", "")
	assert.False(t, ok, "none of its pods is there")
	_, ok = p.Owner("n1", "b", "")
	assert.False(t, ok)
	p.Set("a", "hash", []plan.Placement{on("n1", "p1", 80, "a", true)})
	_, ok = p.Owner("n1", "a", "")
	assert.True(t, ok, "one pod is left")
	p.Set("a", "", nil)
	_, ok = p.Owner("n1", "a", "")
	assert.False(t, ok)
}
