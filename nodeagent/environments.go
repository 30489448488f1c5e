// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
)

// assignmentWait is how long a request for an environment waits for the assignment that allows it.
// Both come from the manager, on streams that may overtake each other.
const assignmentWait = 2 * time.Second

var errNotAssigned = errors.New("no intercept in this node's assignment asks for the environment of this pod")

// environments answers the manager's requests for environments, as far as the assignment allows.
type environments struct {
	from func(podUID, containerID string) ([][]byte, error)

	mu      sync.Mutex
	allowed map[string]bool // by pod UID
	changed chan struct{}   // closed and replaced with each assignment
}

func newEnvironments(from func(podUID, containerID string) ([][]byte, error)) *environments {
	return &environments{from: from, changed: make(chan struct{})}
}

// apply notes which pods the assignment allows to be asked about. A manager that predates
// Rule.environment allows all that are assigned.
func (e *environments) apply(a *agentpb.Assignment) {
	allowed := map[string]bool{}
	for _, pod := range a.GetPods() {
		allowed[pod.GetUid()] = !a.GetEnvironments() || asksForEnvironment(pod)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.allowed = allowed
	close(e.changed)
	e.changed = make(chan struct{})
}

// asksForEnvironment reports whether an intercept or a wiretap of the pod asks for its environment.
func asksForEnvironment(pod *agentpb.Pod) bool {
	for _, t := range slices.Concat(pod.GetTargets(), pod.GetUdpTargets()) {
		if slices.ContainsFunc(slices.Concat(t.GetRules(), t.GetWiretaps()), (*agentpb.Rule).GetEnvironment) {
			return true
		}
	}
	return false
}

// read is an uplink.Environment.
func (e *environments) read(ctx context.Context, podUID, containerID string) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, assignmentWait)
	defer cancel()
	for {
		e.mu.Lock()
		allowed, changed := e.allowed[podUID], e.changed
		e.mu.Unlock()
		if allowed {
			return e.from(podUID, containerID)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errNotAssigned
		}
	}
}
