// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/pods"
)

func TestPodThatFailsHoldsUpNoOtherAndIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	a, c := w.node.NewPod(t), w.node.NewPod(t)
	b := &testnet.Pod{UID: strings.Replace(a.UID, "000000000001", "000000000003", 1),
		IP4: a.IP4.Next().Next()} // its name is known, and nothing else
	assert.False(t, w.set.Assigned(), "before the first assignment")
	third := wants(b.UID, "198.18.3.2")
	w.set.Apply(&agentpb.Assignment{Revision: 1,
		Pods: []*agentpb.Pod{wants(a.UID, a.IP4.String()), third, wants(c.UID, c.IP4.String())}})
	eventually(t, "the others are steered", func() bool { return w.steeringRules() == 2 })
	eventually(t, "every pod was tried", w.set.Assigned)
	assert.Contains(t, w.message(b), "no process of the pod")
	require.Equal(t, b.UID, w.node.NewPod(t).UID)
	w.awaitSteering(t, 3)
	assert.EqualValues(t, 1, w.set.Report().GetRevision())
}

func TestPodsThatAreNotAssignedAreDrained(t *testing.T) {
	w := newWorld(t)
	a, b := w.node.NewPod(t), w.node.NewPod(t)
	w.assign(1, a, b)
	w.awaitSteering(t, 2)
	w.assign(2, b)
	eventually(t, "closed", func() bool { return slices.Contains(w.calls(a), "close") })
	assert.Equal(t, []string{"steered", "drain"}, w.calls(a)[:2])
	assert.Equal(t, []string{"steered"}, w.calls(b), "the other was not touched")
	assert.Equal(t, 1, w.steeringRules())
	w.assign(3, a, b)
	w.awaitSteering(t, 2)
	w.parts.locked(func() { assert.Equal(t, 2, w.parts.of(a.UID).opens) })
}

func TestPodThatIsWantedAgainWhileItDrainsIsNotClosed(t *testing.T) {
	w := newWorld(t, func(cfg *pods.Config) { cfg.Linger = time.Hour })
	a := w.node.NewPod(t)
	w.assign(1, a)
	w.awaitSteering(t, 1)
	w.assign(2)
	eventually(t, "draining", func() bool { return slices.Contains(w.calls(a), "drain") })
	w.assign(3, a)
	w.awaitSteering(t, 1)
	w.parts.locked(func() {
		assert.Equal(t, 1, w.parts.of(a.UID).opens)
		assert.Len(t, w.parts.of(a.UID).applied, 2)
	})
	a.Delete() // or its end would take an hour
	eventually(t, "closed", func() bool { return slices.Contains(w.calls(a), "close") })
}

func TestSameAssignmentChangesNothing(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.assign(1, a)
	w.awaitSteering(t, 1)
	for revision := range uint64(20) {
		w.assign(revision+2, a)
	}
	eventually(t, "reported", func() bool { return w.set.Report().GetRevision() == 21 })
	assert.Equal(t, 1, w.steeringRules())
	w.parts.locked(func() { assert.Len(t, w.parts.of(a.UID).applied, 1) })
}

func TestARuleThatChangesIsNotReportedBeforeItIsObeyed(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	other := &agentpb.Rule{InterceptUid: "j"}
	w.rules(1, a, &agentpb.Rule{InterceptUid: "i", InterceptName: "before"}, other)
	w.awaitSteering(t, 2)
	w.parts.locked(func() { // so nothing can be done about the pod
		w.rules(2, a, &agentpb.Rule{InterceptUid: "i", InterceptName: "after"}, other)
		report := w.set.Report()
		assert.EqualValues(t, 2, report.GetRevision())
		for _, r := range report.GetTargets() {
			assert.Equal(t, r.GetInterceptUid() == "j", r.GetSteering(), "intercept %s", r.GetInterceptUid())
		}
	})
	w.awaitSteering(t, 2)
}

func TestRulesGoWithTheirIntercept(t *testing.T) {
	w := newWorld(t, func(cfg *pods.Config) { cfg.Linger = time.Hour })
	a := w.node.NewPod(t)
	ours := &agentpb.Rule{InterceptUid: "i", Connected: true}
	w.rules(1, a, ours)
	claims := func() (uid string) {
		var pod *part.Pod
		w.parts.locked(func() { pod = w.parts.of(a.UID).pod })
		if pod == nil {
			return ""
		}
		return pod.Match(80, anyRequest{})
	}
	eventually(t, "requests are the intercept's", func() bool { return claims() == "i" })
	w.assign(2)
	eventually(t, "connections that still arrive are the app's, while the pod drains",
		func() bool { return claims() == "" })
	assert.NotContains(t, w.calls(a), "close")
	w.rules(3, a, ours)
	eventually(t, "requests are the intercept's again", func() bool { return claims() == "i" })
	a.Delete()
	eventually(t, "closed", func() bool { return slices.Contains(w.calls(a), "close") })
}

func TestAPortThatAPartBarsIsNotSteeredUntilItDoesNoMore(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.parts.locked(func() { w.parts.of(a.UID).bars.Store("not here") })
	w.assign(1, a)
	eventually(t, "refused", func() bool { return w.message(a) == "not here" })
	report := w.set.Report().GetTargets()[0]
	assert.True(t, report.GetFailed())
	assert.False(t, report.GetSteering())
	w.parts.locked(func() {
		applied := w.parts.of(a.UID).applied
		require.Len(t, applied, 1)
		assert.Empty(t, applied[0].GetTargets(), "parts are not told of the port")
		assert.Empty(t, w.parts.of(a.UID).probes, "nothing comes here")
		w.parts.of(a.UID).bars.Store("")
	})
	w.awaitSteering(t, 1)
	w.parts.locked(func() { assert.Len(t, w.parts.of(a.UID).applied[1].GetTargets(), 1) })
}

func TestSteeringThatBreaksIsReportedAndMended(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.assign(1, a)
	w.awaitSteering(t, 1)
	pins := func() (paths []string) {
		_ = filepath.WalkDir(filepath.Join(w.bpffs, "sidestep"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				paths = append(paths, path)
			}
			return nil
		})
		return paths
	}
	before := pins()
	require.NotEmpty(t, before)
	require.NoError(t, os.Remove(before[0]))
	eventually(t, "pinned again", func() bool { return slices.Equal(before, pins()) })
	w.awaitSteering(t, 1)
	w.silent.Store(true)
	eventually(t, "reported", func() bool { return strings.Contains(w.message(a), "not steered") })
	w.silent.Store(false)
	w.awaitSteering(t, 1)
}

func TestPodThatEndsIsAborted(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.assign(1, a)
	w.awaitSteering(t, 1)
	a.Delete()
	eventually(t, "reported", func() bool { return strings.Contains(w.message(a), "no process of the pod") })
	assert.Equal(t, []string{"steered", "drain", "close"}, w.calls(a))
}

func TestRuleWithLaptopNeedsATunnel(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.rules(1, a, &agentpb.Rule{InterceptUid: "i", Connected: true}, &agentpb.Rule{InterceptUid: "j"})
	eventually(t, "the rule without laptop works", func() bool { return w.steeringRules() == 1 })
	eventually(t, "the other does not",
		func() bool { return strings.Contains(w.message(a), "the manager is away") })
}

// assignPorts assigns a pod with an intercept of each port.
func (w *world) assignPorts(p *testnet.Pod, revision uint64, ports int) {
	want := wants(p.UID, p.IP4.String())
	want.Targets = nil
	for n := range ports {
		want.Targets = append(want.Targets,
			&agentpb.Target{Port: uint32(1000 + n), Rules: []*agentpb.Rule{{InterceptUid: "i"}}})
	}
	w.set.Apply(&agentpb.Assignment{Revision: revision, Pods: []*agentpb.Pod{want}})
}

func TestAnotherPortIsProvedAndThoseBeforeAreNotProvedAgain(t *testing.T) {
	w := newWorld(t, func(cfg *pods.Config) { cfg.ProbeEvery = time.Hour })
	a := w.node.NewPod(t)
	const ports = 40
	for n := range 3 {
		w.assignPorts(a, uint64(n), ports+n)
		w.awaitSteering(t, ports+n)
	}
	w.parts.locked(func() {
		assert.Len(t, w.parts.of(a.UID).probes, ports+2)
		for port, n := range w.parts.of(a.UID).probes {
			assert.Equal(t, 1, n, "port %d", port)
		}
	})
	w.set.Probe()
	eventually(t, "all are proved again when that is asked for", func() (all bool) {
		w.parts.locked(func() {
			all = true
			for _, n := range w.parts.of(a.UID).probes {
				all = all && n == 2
			}
		})
		return all
	})
}

func TestManyPortsAreProvedAgainInTurn(t *testing.T) {
	w := newWorld(t, func(cfg *pods.Config) { cfg.ProbeEvery = 30 * time.Millisecond })
	a := w.node.NewPod(t)
	w.assignPorts(a, 1, 50)
	eventually(t, "each was proved three times", func() (all bool) {
		w.parts.locked(func() {
			all = len(w.parts.of(a.UID).probes) == 50
			for _, n := range w.parts.of(a.UID).probes {
				all = all && n >= 3
			}
		})
		return all
	})
	w.silent.Store(true)
	eventually(t, "each is found to be broken", func() bool { return w.steeringRules() == 0 })
	w.silent.Store(false)
	eventually(t, "each is found to work again", func() bool { return w.steeringRules() == 50 })
}

func TestSupersededSetChangesNothingAnyMore(t *testing.T) {
	w := newWorld(t)
	a, b := w.node.NewPod(t), w.node.NewPod(t)
	ours := &agentpb.Rule{InterceptUid: "i", Connected: true}
	w.rules(1, a, ours)
	eventually(t, "attached", func() bool { return slices.Contains(w.calls(a), "steered") })
	newer := w.newSteering()
	program, err := newer.Load()
	require.NoError(t, err)
	require.NoError(t, program.Attach(a.Namespace))
	t.Cleanup(func() {
		assert.NoError(t, program.Detach())
		assert.NoError(t, program.Close())
		assert.NoError(t, newer.Close())
	})
	<-w.set.Superseded()
	w.assign(2, b)
	assert.EqualValues(t, 1, w.set.Report().GetRevision())
	eventually(t, "its parts are told", func() bool { return slices.Contains(w.calls(a), "not steered") })
	w.parts.locked(func() {
		assert.Equal(t, "i", w.parts.of(a.UID).pod.Match(80, anyRequest{}),
			"the intercept goes on, on connections that are open")
		assert.True(t, w.parts.of(a.UID).pod.Superseded())
	})
	assert.Equal(t, []string{"steered", "not steered"}, w.calls(a))
}

func TestPodThatIsSteeredAgainIsEstablishedAnew(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.assign(1, a)
	w.awaitSteering(t, 1)
	w.set.SteeredAgain()
	eventually(t, "told, applied and told again", func() bool {
		return slices.Equal(w.calls(a), []string{"steered", "not steered", "steered"})
	})
	w.parts.locked(func() { assert.Len(t, w.parts.of(a.UID).applied, 2) })
}

func TestAPartsProblemIsReported(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.parts.of(a.UID).problem = part.Problem{Message: "some clients are missed"}
	w.assign(1, a)
	w.awaitSteering(t, 1)
	assert.Equal(t, "some clients are missed", w.message(a))

	b := w.node.NewPod(t)
	w.parts.locked(func() {
		w.parts.of(b.UID).problem = part.Problem{Message: "there is no UDP here", Refuse: true}
	})
	w.assign(2, b)
	eventually(t, "refused", func() bool { return w.message(b) == "there is no UDP here" })
	report := w.set.Report().GetTargets()[0]
	assert.True(t, report.GetFailed())
	assert.False(t, report.GetSteering())
}

func TestPartThatCannotApplyIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	a := w.node.NewPod(t)
	w.parts.of(a.UID).fail = errors.New("not yet")
	w.assign(1, a)
	eventually(t, "reported", func() bool { return w.message(a) == "not yet" })
	assert.Zero(t, w.steeringRules())
	w.parts.locked(func() { w.parts.of(a.UID).fail = nil })
	w.awaitSteering(t, 1)
}

func TestPodIsSteeredWithoutAPartThatCannotBeOpened(t *testing.T) {
	w := newWorld(t)
	w.parts.fail = errors.New("there are no control groups")
	w.assign(1, w.node.NewPod(t))
	w.awaitSteering(t, 1)
}
