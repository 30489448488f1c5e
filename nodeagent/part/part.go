// SPDX-License-Identifier: Apache-2.0

// Package part is the seam between the supervisor of pods (nodeagent/pods) and what is done for
// each of them: counting connections, showing clients' addresses, relaying datagrams, and so on.
//
// A new kind of per-pod work is a package of its own with a Kind, which nodeagent/agent.go adds to
// its list. The supervisor opens one Part of each Kind for each pod and never learns what it is. It
// calls Apply, Steered, Drain and Close from one goroutine, and the rest from any, between Open and
// Close.
package part

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// Kind is one kind of work, and what the pods of the node have in common for it.
type Kind interface {
	// Open opens the part of one pod, before its first connection, or returns nil if there is nothing to
	// do for such a pod. A pod whose part cannot be opened is steered without it: the error says what it
	// goes without.
	Open(pod *Pod) (Part, error)
}

// Part is one kind of work for one pod.
type Part interface {
	// Apply brings the part to what the assignment wants of the pod. It is called before new
	// connections are steered, with each change, and after Drain if the pod is wanted once more. An
	// error keeps the whole pod from being reported as steering, and Apply is retried. What concerns
	// single intercepts is a Problem instead.
	Apply(want *agentpb.Pod) error
	// Problem returns what an intercept does not get at a target.
	Problem(at Target, rule *agentpb.Rule) Problem
	// Drain begins nothing new and lets what is open finish. It may be called again; so may Apply.
	Drain() error
	// Close aborts what is open and removes what is attached. It comes last, and after Drain.
	Close() error
}

// Target is a port of the pod to which intercepts apply.
type Target struct {
	Port uint16
	UDP  bool
}

// Problem is what an intercept does not get at a target. The zero Problem is none.
type Problem struct {
	Message string
	// Refuse is set if the intercept cannot work there at all. Otherwise the message is an addition:
	// traffic is steered.
	Refuse bool
}

// The following are what a Part may do besides.
type (
	// Steered is a Part that acts on the beginning and the end of steering.
	Steered interface {
		// Steered is called with true when new connections are steered as the last Apply wanted, and
		// every ten seconds (pods.Config.ProbeEvery) while they are. It is called with false when some
		// have gone, or may go, past this node agent: its heartbeat was late, or a newer one has the
		// pod. Apply is then called before it is true again.
		Steered(on bool)
	}
	// Prover is a Part that steers a protocol of its own and can prove that it does.
	Prover interface {
		// Prove sends a probe to a target that is not TCP: the supervisor proves TCP itself.
		Prove(at Target) error
	}
	// Dialer is a Part that prepares connections to the app.
	Dialer interface {
		// Dialing is called for each connection that is to be opened to the app on behalf of a client.
		// prepare, if any, gets the socket before it connects; after an error it does not connect, and
		// the client's connection is reset. The first part that has decided is the last that is asked.
		Dialing(client netip.AddrPort) (prepare func(fd int) error, decided bool)
	}
	// Guard is a Part that can keep a port from being steered at all: its connections then go to the
	// app untouched.
	Guard interface {
		// Bars returns why no connection to the target may be steered, or "". All intercepts of the
		// target are refused with that. The supervisor asks before each Apply and every second
		// (pods.Config.WatchEvery). Apply gets no target that is barred.
		Bars(at Target) string
	}
	// Witness is a Part that is shown the supervisor's own probes, which are no client's.
	Witness interface {
		// Probed is called with a probe that a listener has accepted, before it is closed.
		Probed(c *net.TCPConn)
	}
	// Reporter is a Part that adds its counters to what the manager is told.
	Reporter interface {
		Report(at Target, rule *agentpb.Rule, r *agentpb.TargetReport)
	}
	// Collector is a Part with metrics. They are collected while the pod is assigned and no longer,
	// since its successor may have the same name.
	Collector interface {
		Collect(want *agentpb.Pod, metrics chan<- prometheus.Metric)
	}
	// Described is a Kind whose parts are Collectors.
	Described interface {
		Describe(descs chan<- *prometheus.Desc)
	}
)

// Pod is a pod that is being opened. A Part may keep it. All but Addresses and Probers stays as it is.
type Pod struct {
	UID, Name   string // Name is "namespace/name"
	IPs         []netip.Addr
	HostNetwork bool // the network namespace is the node's
	Namespace   *podnet.Namespace
	// Processes returns the PIDs of processes that the pod has in the namespace.
	Processes func() []string
	// Listeners accept what is steered.
	Listeners []*net.TCPListener
	// Program is what steers. The supervisor alone attaches it and adds TCP targets.
	Program *steer.Program
	// Addresses are those of the app. A Kind may add more in Open.
	Addresses []Address
	// Probers are those from which the kubelet's probes come, besides the assignment's. A Kind may add
	// more in Open.
	Probers []netip.Addr
	// Match returns the UID of the intercept that has a request to the port at present.
	Match func(port uint16, head match.Head) string
	// Changed is to be called when a Problem has changed.
	Changed func()
	// Superseded reports whether a newer node agent has the pod. What this one has open goes on then,
	// although nothing is wanted of it any more.
	Superseded func() bool
	// Go runs a function that Close of the pod waits for: something that serves a connection. It must
	// not be called after Drain.
	Go func(serve func())
	// Context ends when connections are no longer waited for, but aborted.
	Context context.Context
	Log     *slog.Logger
}

// Address is one at which the app is reached.
type Address struct {
	netip.Addr
	// From, if valid, is the only address whose connections to Addr are steered.
	From netip.Addr
}

// Targets are the addresses at which the app is reached on a port.
func (p *Pod) Targets(port uint16) []netip.AddrPort {
	all := make([]netip.AddrPort, 0, len(p.Addresses))
	for _, a := range p.Addresses {
		all = append(all, netip.AddrPortFrom(a.Addr, port))
	}
	return all
}

// Serves reports whether a connection with these addresses is one for the app.
func (p *Pod) Serves(local, remote netip.Addr) bool {
	return slices.ContainsFunc(p.Addresses, func(a Address) bool {
		return a.Addr == local && (!a.From.IsValid() || a.From == remote)
	})
}
