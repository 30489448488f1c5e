// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// Presence says how the manager has seen this laptop.
type Presence struct {
	Connected bool
	Since     time.Time     // by the wall clock: since when it is connected
	Away      time.Duration // how long it was away before, or, if it is not connected, is
	// for how long the manager keeps the intercepts of a laptop that is away; 0: not known
	Grace time.Duration
}

// Why intercepts end without this client's doing.
const (
	endedBySomebody = "somebody deleted it in the cluster"
	endedUnseen     = "it ended while no daemon ran here: the traffic manager ends intercepts of a laptop that is away for too long, or somebody deleted it"
	endedElsewhere  = "it was made by an older daemon and leads to %s, which may have been written by somebody else: run the command again"
	endedWithKind   = "sidestep was removed from the cluster"
	endedOwnerless  = "the command that it was made for has ended, and so had the daemon that would have left it"
)

// Ended is an intercept that has ended without this client's doing.
type Ended struct {
	Namespace, WorkloadKind, Workload, Name string
	Why                                     string
	At                                      time.Time
	// Again: it is to be made again, as soon as there is a connection.
	Again bool

	object *v1alpha1.Intercept // nil: of an earlier daemon
	making bool                // again, just now
	told   bool
}

// note remembers that an intercept has ended. It is called with mu held.
func (r *Registry) note(e *entry, why string) {
	o := e.object
	if _, busy := r.reserved[o.Spec.Name]; busy {
		return // whoever makes it is told
	}
	ended := &Ended{
		Namespace: o.Namespace, WorkloadKind: o.Spec.Workload.Kind, Workload: o.Spec.Workload.Name,
		Name: o.Spec.Name,
		Why:  why, At: r.wall(), object: o,
	}
	if away, ok := r.expired(e); ok && why == endedBySomebody {
		ended.Again = true
		ended.Why = fmt.Sprintf("this laptop was away for %s, and the traffic manager keeps intercepts for %s", short(away), short(r.presence().Grace))
	}
	r.ended[o.Spec.Name] = ended
}

// expired says whether the manager has ended an intercept because the laptop was away, and for how
// long it was. It is called with mu held.
func (r *Registry) expired(e *entry) (time.Duration, bool) {
	p := r.presence()
	if p.Grace <= 0 || p.Away < p.Grace || p.Connected && e.seen.After(p.Since) {
		return 0, false
	}
	return p.Away, true
}

// Ended lists what has ended without this client's doing and was not made again since, by name;
// with news only what nobody has been told of yet, who is now.
func (r *Registry) Ended(news bool) []Ended {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Ended
	for _, e := range r.ended {
		if news && (e.told || e.Again) || e.making && r.has(e.Name) {
			continue
		}
		e.told = e.told || news
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b Ended) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// has says whether there is an intercept of that name. It is called with mu held.
func (r *Registry) has(name string) bool {
	for _, e := range r.entries {
		if e.object.Spec.Name == name {
			return true
		}
	}
	return false
}

// dismiss forgets that an intercept has ended, unless it is just being made again. It is called
// with mu held.
func (r *Registry) dismiss(name string) {
	e, ok := r.ended[name]
	if !ok || e.making {
		return
	}
	delete(r.ended, name)
	if e.object != nil {
		delete(r.held, e.object.UID)
	}
	r.forgetNamespace(e.Namespace)
}

// Restore makes intercepts again that the manager has ended while the laptop was away, until ctx
// ends with the connection.
func (r *Registry) Restore(ctx context.Context) {
	var making sync.WaitGroup
	defer making.Wait()
	for {
		r.mu.Lock()
		changed := r.changed
		for _, e := range r.ended {
			if e.Again && !e.making {
				e.making = true
				making.Go(func() { r.restore(ctx, e) })
			}
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) restore(ctx context.Context, e *Ended) {
	a := &Ask{Namespace: e.Namespace, Spec: *e.object.Spec.DeepCopy(), Timeout: defaultTimeout}
	var made types.UID
	err := r.Make(ctx, a, func(string) {}, func(i *v1alpha1.Intercept) error { made = i.UID; return nil })
	r.mu.Lock()
	defer r.mu.Unlock()
	e.making = false
	switch {
	case err == nil:
		r.log.Info("intercept made again", "name", e.Name, "namespace", e.Namespace)
		delete(r.ended, e.Name)
		was := e.object.UID
		r.successors[was] = made
		if process, held := r.held[was]; held {
			delete(r.held, was)
			r.held[made] = process
		}
	case ctx.Err() != nil: // the connection has gone; the next one tries again
	default:
		r.log.Warn("intercept could not be made again", "name", e.Name, "namespace", e.Namespace, "error", err)
		e.Again, e.At = false, r.wall()
		e.Why += "; it cannot be had again: " + status.Convert(err).Message()
	}
	r.forgetNamespace(e.Namespace)
	r.notify()
}

// short is a duration as people say it: 1h15m, 40s.
func short(d time.Duration) string {
	precision := time.Second
	if d >= 10*time.Minute {
		precision = time.Minute
	}
	text := d.Round(precision).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Still says whether an intercept goes on, if under another UID since it had to be made again.
func (r *Registry) Still(uid types.UID) (types.UID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for next, ok := r.successors[uid]; ok; next, ok = r.successors[uid] {
		uid = next
	}
	if _, ok := r.entries[uid]; ok {
		return uid, true
	}
	for _, e := range r.ended {
		if e.object != nil && e.object.UID == uid && (e.Again || e.making) {
			return uid, true
		}
	}
	return uid, false
}
