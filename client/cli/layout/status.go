// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"io"
	"strings"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
)

// Status is the record of the daemons and the session.
type Status struct {
	RootDaemon     RootDaemon     `json:"root_daemon"`
	UserDaemon     UserDaemon     `json:"user_daemon"`
	TrafficManager TrafficManager `json:"traffic_manager"`
}

// RootDaemon would hold the laptop's network into the cluster.
type RootDaemon struct {
	Running bool `json:"running"`
}

// UserDaemon holds the session.
type UserDaemon struct {
	Running           bool        `json:"running"`
	Version           string      `json:"version,omitempty"`
	Executable        string      `json:"executable,omitempty"`
	PID               int32       `json:"pid,omitempty"`
	Status            string      `json:"status,omitempty"`
	Error             string      `json:"error,omitempty"`
	SessionID         string      `json:"session_id,omitempty"`
	Client            string      `json:"client,omitempty"`
	KubernetesServer  string      `json:"kubernetes_server,omitempty"`
	KubernetesContext string      `json:"kubernetes_context,omitempty"`
	Namespace         string      `json:"namespace,omitempty"`
	ManagerNamespace  string      `json:"manager_namespace,omitempty"`
	Intercepts        []Intercept `json:"intercepts"`
	Ended             []Ended     `json:"ended_intercepts,omitempty"`
}

// Ended is an intercept that has ended without having been left.
type Ended struct {
	Name         string `json:"name"`
	Namespace    string `json:"namespace"`
	WorkloadKind string `json:"workload_kind"`
	Workload     string `json:"workload"`
	Reason       string `json:"reason"`
	Restoring    bool   `json:"restoring,omitempty"`
}

func endedRecords(ended []*daemonpb.EndedInfo) []Ended {
	var records []Ended
	for _, e := range ended {
		records = append(records,
			Ended{e.GetName(), e.GetNamespace(), e.GetWorkloadKind(), e.GetWorkload(), e.GetReason(),
				e.GetAgain()})
	}
	return records
}

// TrafficManager is the other end of the session.
type TrafficManager struct {
	Connected bool   `json:"connected"`
	Version   string `json:"version,omitempty"`
	// NodeAgents are those that the traffic manager knows of, if they were asked for.
	NodeAgents []NodeAgent `json:"node_agents,omitempty"`
}

// StatusRecord returns the record of a status. A nil s means that no user daemon runs. told is what
// the traffic manager knows of the nodes, if it was asked.
func StatusRecord(s *daemonpb.StatusInfo, told *daemonpb.NodeAgentsReply) Status {
	var r Status
	r.UserDaemon.Intercepts = []Intercept{}
	if s == nil {
		return r
	}
	d := s.GetDaemon()
	r.UserDaemon = UserDaemon{
		Running: true, Version: d.GetVersion(), Executable: d.GetExecutable(), PID: d.GetPid(),
		Status: state(s), Error: s.GetMessage(),
		SessionID: s.GetSession(), Client: s.GetHolder(), KubernetesServer: s.GetKubernetesServer(),
		KubernetesContext: s.GetKubernetesContext(),
		Namespace:         s.GetNamespace(), ManagerNamespace: s.GetManagerNamespace(),
		Intercepts: interceptRecords(s.GetIntercepts()),
		Ended:      endedRecords(s.GetEnded()),
	}
	infos := byName(s.GetIntercepts())
	for i := range r.UserDaemon.Intercepts {
		its := &r.UserDaemon.Intercepts[i]
		its.Traffic = trafficRecord(trafficOf(told.GetTraffic(), its.ID))
		its.Copies = copiesRecord(copiesOf(told.GetTraffic(), its.ID))
		if counted := toldOf(told.GetTraffic(), its.ID); counted != nil {
			its.Answered = counted.Answered
			its.Unanswered = unansweredRecords(misses(infos[i], counted))
		}
	}
	r.TrafficManager = TrafficManager{Connected: s.GetConnected()}
	if s.GetConnected() {
		r.TrafficManager.Version = s.GetManagerVersion()
		r.TrafficManager.NodeAgents = agentRecords(told.GetAgents())
	}
	return r
}

func state(s *daemonpb.StatusInfo) string {
	switch {
	case s.GetState() != "":
		return s.GetState()
	case s.GetConnected():
		return "Connected"
	default:
		return "Not connected"
	}
}

// StatusText writes the status for people.
type StatusText struct {
	Brand    string // Sidestep or Telepresence
	Version  string // of the command line
	Protocol int    // of the command line
	Wide     bool   // a line for every pod
	Paint    Paint
	Now      time.Time
	Told     *daemonpb.NodeAgentsReply // of the nodes, if the traffic manager was asked
}

// Write writes the blocks of the root daemon, the user daemon and the traffic manager; s is nil
// when no user daemon runs.
func (t StatusText) Write(w io.Writer, s *daemonpb.StatusInfo) error {
	s, t.Told = safely(s), safely(t.Told)
	var text strings.Builder
	fmt.Fprintf(&text, "Root Daemon: %s\n", t.Paint.Odd("Not running"))
	if s == nil {
		fmt.Fprintf(&text, "User Daemon: %s\n", t.Paint.Odd("Not running"))
	} else {
		fmt.Fprintf(&text, "User Daemon: %s\n", t.Paint.Good("Running"))
		_, _ = t.daemonBlock(s).WriteTo(&text)
	}
	if s.GetConnected() {
		fmt.Fprintf(&text, "Traffic Manager: %s\n", t.Paint.Good("Connected"))
		b := &Block{Indent: "  ", Hang: "    "}
		b.Add("Version", s.GetManagerVersion())
		_, _ = b.WriteTo(&text)
		text.WriteString(t.nodeAgents())
	} else {
		fmt.Fprintf(&text, "Traffic Manager: %s\n", t.Paint.Odd("Not connected"))
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (t StatusText) daemonBlock(s *daemonpb.StatusInfo) *Block {
	b := &Block{Indent: "  ", Hang: "    "}
	version := s.GetDaemon().GetVersion()
	if version == t.Version {
		// The command line knows only the protocol of its own version.
		version = fmt.Sprintf("%s (api %d)", version, t.Protocol)
	}
	b.Add("Version", version)
	if t.Wide {
		b.Add("Executable", s.GetDaemon().GetExecutable())
		b.Add("Process", fmt.Sprint(s.GetDaemon().GetPid()))
	}
	st := state(s)
	if s.GetConnected() {
		b.Add("Status", t.Paint.Good(st))
	} else {
		b.Add("Status", t.Paint.Odd(st))
	}
	b.Add("Error", s.GetMessage())
	if s.GetSession() == "" {
		return b
	}
	b.Add("Kubernetes server", s.GetKubernetesServer())
	b.Add("Kubernetes context", s.GetKubernetesContext())
	b.Add("Namespace", s.GetNamespace())
	b.Add("Manager namespace", s.GetManagerNamespace())
	if t.Wide {
		b.Add("Session", s.GetSession())
		b.Add("Client", s.GetHolder())
	}
	b.Add(t.Brand+" proxy", "OFF (networking to the cluster is not enabled)")
	b.Add("Intercepts", fmt.Sprintf("%d total", len(s.GetIntercepts())), t.interceptLines(s)...)
	if len(s.GetEnded()) > 0 {
		b.Add("Ended intercepts", fmt.Sprintf("%d total", len(s.GetEnded())), t.endedLines(s)...)
	}
	return b
}

func (t StatusText) interceptLines(s *daemonpb.StatusInfo) []string {
	var lines []string
	for _, i := range byName(s.GetIntercepts()) {
		line := i.GetName() + ": " + i.GetHolder()
		if i.GetWiretap() {
			line += ", wiretap"
		}
		if i.GetState() == "ACTIVE" && i.GetMessage() != "" {
			line += ", " + t.Paint.Odd("warning") + ": " + i.GetMessage()
		}
		if i.GetState() != "ACTIVE" {
			line += ", " + t.Paint.state(i.GetState())
			if i.GetMessage() != "" {
				line += ": " + i.GetMessage()
			}
		}
		lines = append(lines, line)
		lines = append(lines, t.answerLines(i)...)
		if t.Wide {
			lines = append(lines, t.wideLines(i)...)
		}
	}
	return lines
}

func (t StatusText) endedLines(s *daemonpb.StatusInfo) []string {
	var lines []string
	for _, e := range s.GetEnded() {
		line := fmt.Sprintf("%s, of %s %s.%s: %s", e.GetName(), e.GetWorkloadKind(), e.GetWorkload(),
			e.GetNamespace(), e.GetReason())
		if e.GetAgain() {
			line += "; " + t.Paint.Odd("it is being recreated")
		}
		lines = append(lines, line)
	}
	return lines
}

func (t StatusText) wideLines(i *daemonpb.InterceptInfo) []string {
	what := intercepting(i)
	if i.GetWiretap() {
		what = "copies of " + what
	}
	lines := []string{fmt.Sprintf("  %s %s.%s to %s, %s", i.GetWorkloadKind(), i.GetWorkload(),
		i.GetNamespace(), i.GetDestination(), what)}
	for _, c := range i.GetConditions() {
		lines = append(lines, "    "+c)
	}
	if counted := trafficOf(t.Told.GetTraffic(), i.GetId()); counted != nil {
		lines = append(lines, "  "+trafficLine(counted))
	}
	if counted := copiesOf(t.Told.GetTraffic(), i.GetId()); counted != nil {
		lines = append(lines, "  "+copiesLine(counted, i.GetMechanism()))
	}
	for _, pod := range i.GetPods() {
		line := fmt.Sprintf("  pod %s on %s: ", pod.GetName(), pod.GetNode())
		switch {
		case pod.GetSteering():
			line += t.Paint.Good("steering")
		case pod.GetMessage() != "":
			line += t.Paint.Odd("not steering") + ": " + pod.GetMessage()
		default:
			line += t.Paint.Odd("not steering")
		}
		lines = append(lines, line)
	}
	return lines
}
