// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"strings"

	"sidestep.dev/sidestep/api/daemonpb"
)

// NodeAgent is the record of a node's agent.
type NodeAgent struct {
	Node     string `json:"node"`
	Attached bool   `json:"attached"`
	Version  string `json:"version,omitempty"`
	Kernel   string `json:"kernel,omitempty"`
	Datapath string `json:"datapath,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

func agentRecords(agents []*daemonpb.NodeAgentInfo) []NodeAgent {
	var records []NodeAgent
	for _, a := range agents {
		records = append(records, NodeAgent{
			Node: a.GetNode(), Attached: a.GetAttached(), Version: a.GetVersion(),
			Kernel: a.GetKernel(), Datapath: a.GetDatapath(), Reason: a.GetReason(),
		})
	}
	return records
}

// nodeAgents returns the block of the nodes, "" if they were not asked for.
func (t StatusText) nodeAgents() string {
	if len(t.Told.GetAgents()) == 0 {
		return ""
	}
	attached := 0
	b := &Block{Indent: "  ", Hang: "    "}
	for _, a := range t.Told.GetAgents() {
		if a.GetAttached() {
			attached++
		}
		b.Add(a.GetNode(), t.nodeAgent(a))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "Node Agents: %d attached\n", attached)
	_, _ = b.WriteTo(&text)
	return text.String()
}

func (t StatusText) nodeAgent(a *daemonpb.NodeAgentInfo) string {
	if !a.GetAttached() {
		return t.Paint.Odd("Not attached")
	}
	is := fmt.Sprintf("%s, Linux %s, ", a.GetVersion(), a.GetKernel())
	switch {
	case a.GetDatapath() != "":
		return is + fmt.Sprintf("%s by %s (%s)", t.Paint.Good("steers"), a.GetDatapath(), a.GetReason())
	case a.GetReason() != "":
		return is + t.Paint.Odd("cannot steer") + ": " + a.GetReason()
	default:
		return is + "has not said yet how it steers"
	}
}
