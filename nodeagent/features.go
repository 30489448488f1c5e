// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/datagrams"
	"sidestep.dev/sidestep/nodeagent/environ"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/privilege"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// What is said of features that are off.
var (
	errEnvironmentsOff = errors.New(
		"reading environments is turned off for this installation (chart value nodeagent.features.environment)")
	udpOff      = "UDP is turned off for this installation (chart value nodeagent.features.udp)"
	takeoverOff = "connections that are open already stay with the app: ending them is turned off for this " +
		"installation (chart value nodeagent.features.takeover)"
)

// features returns what is on.
func (c Config) features() privilege.Features {
	return privilege.Features{Environment: !c.Off.Environment, UDP: !c.Off.UDP, Takeover: !c.Off.Takeover}
}

// reportLacking logs which features that are on lack a capability.
func (c Config) reportLacking() {
	lacking, err := privilege.Lacking(c.features())
	if err != nil {
		c.Log.Warn("capabilities are unknown", "error", err)
	}
	for _, l := range lacking {
		c.Log.Warn("a feature lacks a capability", "feature", l.Feature, "capability", l.Capability)
	}
}

// environmentReader returns what reads environments.
func (a *agent) environmentReader() func(podUID, containerID string) ([][]byte, error) {
	if a.cfg.Off.Environment {
		return func(string, string) ([][]byte, error) { return nil, errEnvironmentsOff }
	}
	return environ.Reader{Proc: a.cfg.Proc}.Read
}

// datagrams returns the part that steers UDP ports, or keeps them from it.
func (a *agent) datagrams() part.Kind {
	if a.cfg.Off.UDP {
		return off{udp: udpOff}
	}
	return datagrams.New(a.uplink, a.metrics)
}

// takeover returns the part that ends older connections, or says that they stay.
func (a *agent) takeover() part.Kind {
	if a.cfg.Off.Takeover {
		return off{older: takeoverOff}
	}
	return takeover.New(a.steering.Beating, a.metrics)
}

// off is a feature that is turned off: a part.Kind, and the part of each pod. It does nothing but
// say so.
type off struct {
	udp   string // why no UDP port is steered
	older string // why older connections stay with the app
}

func (o off) Open(*part.Pod) (part.Part, error) { return o, nil }

// Bars implements part.Guard.
func (o off) Bars(at part.Target) string {
	if at.UDP {
		return o.udp
	}
	return ""
}

// Problem implements part.Part.
func (o off) Problem(at part.Target, r *agentpb.Rule) (none part.Problem) {
	if at.UDP || !r.GetConnected() || r.GetExisting() == takeover.None {
		return none
	}
	return part.Problem{Message: o.older}
}

func (off) Apply(*agentpb.Pod) error { return nil }
func (off) Drain() error             { return nil }
func (off) Close() error             { return nil }
