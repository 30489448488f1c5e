// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

// bars returns why a target must not be steered, or "".
func (o *opened) bars(at part.Target) string {
	for _, one := range o.parts {
		if g, ok := one.(part.Guard); ok {
			if why := g.Bars(at); why != "" {
				return why
			}
		}
	}
	return ""
}

// barredOf returns those targets that must not be steered.
func (o *opened) barredOf(want *agentpb.Pod) map[part.Target]bool {
	barred := map[part.Target]bool{}
	for _, t := range targets(want) {
		if o.bars(t.at()) != "" {
			barred[t.at()] = true
		}
	}
	return barred
}

// without returns the pod without its barred targets.
func without(want *agentpb.Pod, barred map[part.Target]bool) *agentpb.Pod {
	if len(barred) == 0 {
		return want
	}
	less := proto.CloneOf(want)
	less.Targets = slices.DeleteFunc(less.Targets, func(t *agentpb.Target) bool {
		return barred[target{t, false}.at()]
	})
	less.UdpTargets = slices.DeleteFunc(less.UdpTargets, func(t *agentpb.Target) bool {
		return barred[target{t, true}.at()]
	})
	return less
}
