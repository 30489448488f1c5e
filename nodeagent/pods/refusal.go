// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"strings"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// errHostNetwork is why pods on the node's network are left alone unless the installation allows
// otherwise.
var errHostNetwork = errors.New(
	"the pod uses the node's network (hostNetwork), where whatever else listens on its port would be steered too: " +
		"such pods cannot be intercepted unless the administrator allows it (chart value nodeagent.allowHostNetwork)")

// errHostNetworkByTC is why such pods are left alone on nodes that steer by TC: it would be
// attached to the devices of all pods of the node, and see what is routed through it.
var errHostNetworkByTC = errors.New(
	"the pod uses the node's network (hostNetwork), where steering takes sk_lookup, and this node steers by TC: " +
		"such pods cannot be intercepted here (it takes Linux 5.9, and --datapath=auto or sk_lookup)")

// refusal returns why a pod can never be steered, if that is so.
func (s *Set) refusal(want *agentpb.Pod) error {
	if want.GetHostNetwork() {
		if err := s.onHostNetwork(); err != nil {
			return err
		}
	}
	class := strings.ToLower(want.GetRuntimeClass())
	for _, sandbox := range []string{"kata", "gvisor", "runsc"} {
		if strings.Contains(class, sandbox) {
			return fmt.Errorf("the pod runs in a sandbox with a network stack of its own (runtime class %q), which the node cannot steer: such pods cannot be intercepted", want.GetRuntimeClass())
		}
	}
	return nil
}

// onHostNetwork returns why a pod on the node's network cannot be steered, if that is so.
func (s *Set) onHostNetwork() error {
	if !s.cfg.AllowHostNetwork {
		return errHostNetwork
	}
	if datapath, _ := s.cfg.Steering.Datapath(); datapath == steer.TCX || datapath == steer.ClsAct {
		return errHostNetworkByTC
	}
	return nil
}

// occupy reserves a network namespace for one pod. Pods on the node's network share theirs, where
// one program can steer.
func (s *Set) occupy(p *pod, id netns.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.occupied[id]; other != nil && other != p {
		return fmt.Errorf("pod %s, which uses the network of this node as well, is intercepted already: one such pod of a node can be", other.name)
	}
	s.occupied[id] = p
	return nil
}

// release releases what the pod has occupied. Nothing of it may be attached any more.
func (s *Set) release(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, by := range s.occupied {
		if by == p {
			delete(s.occupied, id)
		}
	}
}
