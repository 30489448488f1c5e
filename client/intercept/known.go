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
	// HolderPatience is how long what an earlier daemon held for a command waits for that command,
	// which lives, to hold it again.
	HolderPatience = time.Minute
	// HolderPoll is how often it is looked whether the command lives.
	HolderPoll = 200 * time.Millisecond
	// leaveTimeout bounds one attempt to leave what nobody holds any more, and leaveAgain is the
	// pause after it.
	leaveTimeout = 10 * time.Second
	leaveAgain   = 2 * time.Second
)

// Known is what a daemon leaves on disk about an intercept, so that the next one notices if it is
// gone or nobody's.
type Known struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Workload  string `json:"workload"`
	// Holder is the process that it was made for the length of; 0: none, it stays until it is left.
	Holder int `json:"holder,omitempty"`

	// What the laptop does for it, which is not read back from the object; see own. The first
	// release wrote none of these.
	UID           types.UID `json:"uid,omitempty"`
	Address       string    `json:"address,omitempty"`
	Port          int32     `json:"port,omitempty"`
	ContainerPort int32     `json:"containerPort,omitempty"`
	ToPod         []int32   `json:"toPod,omitempty"`
	Wiretap       bool      `json:"wiretap,omitempty"`

	refused string // the address for which an object of the first release was not accepted
}

// Keep has what a daemon that comes after this one has to know kept on disk, and returns the channel
// that is closed when that may have changed.
func (r *Registry) Keep() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep()
	return r.changed
}

// known is called with mu held.
func (r *Registry) known() []Known {
	var all []Known
	add := func(i *v1alpha1.Intercept) {
		o, ok := r.own[i.UID]
		if !ok { // ended, and to be made again; without a UID it would pass for the first release's
			o = &own{destination: i.Spec.Destination, toPod: i.Spec.ToPod, wiretap: i.Spec.Wiretap}
		}
		all = append(all, o.known(Known{Name: i.Spec.Name, Namespace: i.Namespace,
			Kind: i.Spec.Workload.Kind, Workload: i.Spec.Workload.Name, Holder: r.held[i.UID]}, i.UID))
	}
	for _, e := range r.entries {
		add(e.object)
	}
	for _, e := range r.ended {
		if e.Again {
			add(e.object)
		}
	}
	for _, expected := range r.expected {
		for _, k := range expected {
			if _, seen := r.entries[k.UID]; !seen {
				all = append(all, k)
			}
		}
	}
	slices.SortFunc(all, func(a, b Known) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
	})
	return all
}

// Hold notes that an intercept lasts as long as a process.
func (r *Registry) Hold(uid types.UID, process int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[uid] = process
	r.notify()
}

// compare takes the first list of a namespace as the answer to what has become of the intercepts
// that an earlier daemon left there. It is called with mu held.
func (r *Registry) compare(namespace string) {
	expected := r.expected[namespace]
	delete(r.expected, namespace)
	for _, k := range expected {
		_, there := r.entries[k.UID]
		switch {
		case !there:
			why := endedUnseen
			if k.refused != "" {
				why = fmt.Sprintf(endedElsewhere, k.refused)
			}
			delete(r.own, k.UID)
			if r.has(k.Name) || r.reserved[k.Name] != nil {
				continue // it was made anew meanwhile
			}
			r.ended[k.Name] = &Ended{Namespace: namespace, WorkloadKind: k.Kind, Workload: k.Workload,
				Name: k.Name, Why: why, At: r.wall()}
			r.notify()
		case k.Holder != 0:
			r.watches.Go(func() { r.awaitHolder(k.UID, k.Holder) })
		}
	}
}

// awaitHolder leaves an intercept unless the command that an earlier daemon held it for has it held
// again.
func (r *Registry) awaitHolder(uid types.UID, process int) {
	ctx, cancel := context.WithTimeout(r.ctx, HolderPatience)
	defer cancel()
	tick := time.NewTicker(HolderPoll)
	defer tick.Stop()
	for {
		r.mu.Lock()
		_, held := r.held[uid]
		_, there := r.entries[uid]
		r.mu.Unlock()
		if held || !there {
			return
		}
		if !Alive(process) || ctx.Err() != nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
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
		r.log.Warn("cannot leave what nobody holds", "intercept", object.Spec.Name, "error", err)
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
	r.note(&entry{object: object}, endedOwnerless)
	r.notify()
	return nil
}
