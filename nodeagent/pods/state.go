// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"slices"
	"strings"

	"sidestep.dev/sidestep/api/agentpb"
)

// phase is where a pod is in its life.
type phase string

const (
	// pending: nothing is open. The pod is being opened, tried again, or nothing is wanted of it.
	pending phase = "pending"
	// steering: listeners, program and parts are open, and new connections come here.
	steering phase = "steering"
	// standby: as steering, but a newer node agent has the new connections.
	standby phase = "standby"
	// draining: new connections go to the app. Listeners are open for those that are on their way.
	draining phase = "draining"
)

// facts are what decides about a pod's next step.
type facts struct {
	gone       bool // the last process of the pod has left its namespace
	wanted     bool // some target is
	superseded bool // a newer node agent has taken over
	refused    bool // such pods are never steered
	drained    bool // no connection can be on its way to the listeners any more
}

// action is what a step does with a pod.
type action string

const (
	wait   action = "wait"
	open   action = "open"   // find the namespace, open everything, apply, attach
	apply  action = "apply"  // bring what is open to what is wanted, and mend what others have broken
	yield  action = "yield"  // tell the parts that new connections go past this agent
	drain  action = "drain"  // give new connections to the app
	finish action = "finish" // close the listeners, and everything else when open connections have ended
	abort  action = "abort"  // close everything and reset what is open
)

// transition is one line of the table: the first whose phase and condition fit is taken. A pod whose
// action fails stays in its phase, and the step is repeated after a pause.
type transition struct {
	from []phase
	when func(facts) bool
	do   action
	to   phase
}

var transitions = []transition{
	{[]phase{steering, standby, draining}, func(f facts) bool { return f.gone }, abort, pending},
	{[]phase{pending}, func(f facts) bool { return !f.wanted }, wait, pending},
	{[]phase{steering, standby}, func(f facts) bool { return !f.wanted }, drain, draining},
	{[]phase{draining}, func(f facts) bool { return !f.wanted && !f.drained }, wait, draining},
	{[]phase{draining}, func(f facts) bool { return !f.wanted }, finish, pending},
	// The newer agent does what is wanted, which this one may not even know.
	{[]phase{steering}, func(f facts) bool { return f.superseded }, yield, standby},
	{[]phase{pending, standby, draining}, func(f facts) bool { return f.superseded }, wait, ""},
	{[]phase{steering, standby, draining}, func(f facts) bool { return f.refused }, abort, pending},
	{[]phase{pending}, func(f facts) bool { return f.refused }, wait, pending},
	{[]phase{pending}, always, open, steering},
	{[]phase{steering, standby, draining}, always, apply, steering},
}

func always(facts) bool { return true }

// next returns what is to be done with a pod, and the phase in which that leaves it.
func (from phase) next(f facts) (do action, to phase) {
	i := slices.IndexFunc(transitions, func(t transition) bool { return slices.Contains(t.from, from) && t.when(f) })
	t := transitions[i] // the table has a last line for each phase
	if t.to == "" {
		return t.do, from
	}
	return t.do, t.to
}

// state is all that is known of a pod. pod.mu guards it.
type state struct {
	phase   phase
	wanted  *agentpb.Pod // nil: the pod is forgotten once it is pending
	applied *agentpb.Pod // what is in force; nil if that is to be established anew
	opened  *opened      // nil if pending; only run changes it
	// problem is why not all is as wanted; lasting, if it is not one of setting up.
	problem string
	lasting bool
	tried   bool // to do what is wanted
	proofs  proofs
	due     due
	// missed is set when new connections have gone past this agent for a while.
	missed bool
}

// due is which proofs are to be made in the next step, whatever the time.
type due struct {
	all   bool // all of them
	fresh bool // those that have never been made
}

// settle notes the outcome of a step, and whether a problem is likely to stay. It reports whether
// anything is new.
func (s *state) settle(err error, lasting bool) (news bool) {
	problem := ""
	if err != nil {
		problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	lasting = lasting && err != nil
	news = s.problem != problem || s.lasting != lasting || !s.tried
	s.problem, s.lasting, s.tried = problem, lasting, true
	return news
}
