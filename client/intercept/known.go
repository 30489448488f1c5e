// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

const (
	// commandPatience is how long something that a command held by a call to an earlier daemon waits for
	// that command, if it lives, to hold it again.
	commandPatience = time.Minute
	// commandPoll is the interval between checks whether the command lives.
	commandPoll = 200 * time.Millisecond
	// leaveTimeout bounds one attempt to end what no command holds any more. leaveAgain is the
	// pause after it.
	leaveTimeout = 10 * time.Second
	leaveAgain   = 2 * time.Second
)

// Known is what a daemon keeps on disk about an intercept, so that the next daemon notices if it is
// gone or if its command has ended.
type Known struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Workload  string `json:"workload"`
	// Process is the command that holds it. 0: none, so it stays until it is left.
	Process int `json:"holder,omitempty"`

	// What the laptop does for it, which is never read back from the object; see own. The first
	// release wrote none of these.
	UID           types.UID `json:"uid,omitempty"`
	Address       string    `json:"address,omitempty"`
	Port          int32     `json:"port,omitempty"`
	ContainerPort int32     `json:"containerPort,omitempty"`
	ToPod         []int32   `json:"toPod,omitempty"`
	Wiretap       bool      `json:"wiretap,omitempty"`
}

// keyOf returns the UID, or a stand-in where a session.json of the first release has none.
func keyOf(uid types.UID, namespace, name string) types.UID {
	return cmp.Or(uid, types.UID("no UID: "+namespace+"/"+name))
}

func (k *Known) tracked() *tracked {
	return &tracked{
		state: expected, process: k.Process,
		ref: ref{keyOf(k.UID, k.Namespace, k.Name), k.Name, k.Namespace, k.Kind, k.Workload},
		own: own{destination: v1alpha1.Destination{Address: k.Address, Port: k.Port},
			containerPort: k.ContainerPort, toPod: slices.Clone(k.ToPod), wiretap: k.Wiretap},
	}
}

func (t *tracked) known() Known {
	k := Known{
		Name: t.name, Namespace: t.namespace, Kind: t.kind, Workload: t.workload, Process: t.process,
		UID: t.uid, Address: t.destination.Address, Port: t.destination.Port,
		ContainerPort: t.containerPort, ToPod: slices.Clone(t.toPod), Wiretap: t.wiretap,
	}
	if t.uid == keyOf("", t.namespace, t.name) {
		k.UID = ""
	}
	return k
}

// Keep saves what the next daemon has to know, and returns the channel that is closed when that may
// have changed.
func (r *Registry) Keep() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep()
	return r.changed
}

// known is called with mu held.
func (r *Registry) known() []Known {
	var all []Known
	for _, t := range r.those(func(t *tracked) bool { return t.there() || t.again() || t.state == expected }) {
		all = append(all, t.known())
	}
	return all
}

// Hold notes that a process holds an intercept.
func (r *Registry) Hold(uid types.UID, process int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.tracked[uid]; t != nil {
		t.process, t.held = process, true
	}
	r.notify()
}

// compare takes the first list of a namespace to find out what has become of the intercepts that an
// earlier daemon made there. It is called with mu held.
func (r *Registry) compare(namespace string) {
	for _, t := range r.those(func(t *tracked) bool { return t.namespace == namespace }) {
		switch {
		case t.state == expected:
			why := endedUnseen
			if t.refused != "" {
				why = fmt.Sprintf(endedElsewhere, t.refused)
			}
			if r.has(t.name) || r.reserved[t.name] != nil {
				delete(r.tracked, t.uid) // it was recreated meanwhile
				continue
			}
			t.state, t.why, t.at = ended, why, r.wall()
			r.notify()
		case t.there() && t.process != 0 && !t.held && !t.awaiting:
			t.awaiting = true
			r.watches.Go(func() { r.awaitCommand(t.uid, t.process) })
		}
	}
}

// AwaitCommand waits until settled is true, and then returns true. It returns false when the command,
// which held something by a call to an earlier daemon, has ended or has had enough time to hold it
// again, or when ctx ends.
func AwaitCommand(ctx context.Context, process int, settled func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	tick := time.NewTicker(commandPoll)
	defer tick.Stop()
	for {
		if settled() {
			return true
		}
		if !Alive(process) || ctx.Err() != nil {
			return false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// awaitCommand leaves an intercept unless the command that held it by a call to an earlier daemon
// holds it again.
func (r *Registry) awaitCommand(uid types.UID, process int) {
	settled := AwaitCommand(r.ctx, process, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		t := r.there(uid)
		return t == nil || t.held
	})
	if settled {
		return
	}
	for r.ctx.Err() == nil {
		object, _ := r.get(uid)
		if object == nil {
			return
		}
		err := r.leaveOwnerless(object)
		if err == nil {
			return
		}
		r.log.Warn("cannot leave an intercept whose command has ended", "intercept", object.Spec.Name, "error", err)
		select {
		case <-time.After(leaveAgain):
		case <-r.ctx.Done():
		}
	}
}

func (r *Registry) leaveOwnerless(object *v1alpha1.Intercept) error {
	ctx, cancel := context.WithTimeout(r.ctx, leaveTimeout)
	defer cancel()
	cluster, err := r.source.Cluster()
	if err != nil {
		return err
	}
	if err := r.delete(ctx, cluster, object); err != nil {
		return cluster.Explain(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.tracked[object.UID]; t != nil {
		r.end(t, endedOwnerless)
	}
	r.notify()
	return nil
}
