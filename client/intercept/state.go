// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// state is where an intercept that this laptop created is in its life.
//
//	from       event                                                  to
//	-          a command created it, or an upgrade takes it over      present
//	expected   the first list of its namespace has it                 present
//	expected   the first list lacks it                                ended
//	present    this laptop begins to delete it                        leaving
//	leaving    the deletion fails                                     present
//	leaving    it is deleted                                          left
//	present    the API lacks it after the laptop was away too long    lost
//	present    the API lacks it for another reason                    ended
//	lost       there is a connection to the manager                   restoring
//	restoring  it was made again, under another UID                   replaced
//	restoring  the connection has ended                               lost
//	restoring  it cannot be made again                                ended
//	ended      its kind is back in the API, and so is it              present
//	ended,     the user leaves it, or makes another of its name       forgotten
//	lost
//
// One that is being created has no UID yet, and so no state: it is a reservation.
type state int

const (
	expected  state = iota // saved by an earlier daemon, and not looked for yet
	present                // in the API
	leaving                // in the API, and being deleted by this laptop
	lost                   // ended because the laptop was away; it will be recreated
	restoring              // being recreated
	ended                  // ended, and not by this laptop, which the user is told
	left                   // deleted by this laptop: later news of it is ignored
	replaced               // recreated under another UID
)

// tracked is one intercept that this laptop created.
type tracked struct {
	state state
	own
	ref                          // what it is called, even if its object was never seen
	raw      *v1alpha1.Intercept // as the API had it last; nil: not seen by this daemon
	object   *v1alpha1.Intercept // raw, with what this laptop keeps about it
	warned   string              // about these differences between the two
	added    uint64
	seen     time.Time // by the wall clock: when the API last had it
	refused  string    // expected: the address for which its object was not accepted
	process  int       // the command that holds the intercept; 0: none
	held     bool      // by a call to this daemon
	awaiting bool      // awaitCommand runs
	why      string    // lost, restoring, ended
	at       time.Time // when it ended
	told     bool      // the user knows of the end
	next     types.UID // replaced
}

// ref is how an intercept is called.
type ref struct {
	uid                             types.UID
	name, namespace, kind, workload string
}

func refOf(i *v1alpha1.Intercept) ref {
	return ref{i.UID, i.Spec.Name, i.Namespace, i.Spec.Workload.Kind, i.Spec.Workload.Name}
}

// there reports whether the API has the intercept, as far as is known.
func (t *tracked) there() bool { return t.state == present || t.state == leaving }

// again reports whether the intercept has ended and will be recreated.
func (t *tracked) again() bool { return t.state == lost || t.state == restoring }

// over reports whether the intercept has ended without the laptop's doing.
func (t *tracked) over() bool { return t.again() || t.state == ended }

// there returns the intercept of a UID, nil if the API does not have it. It is called with mu held.
func (r *Registry) there(uid types.UID) *tracked {
	if t := r.tracked[uid]; t != nil && t.there() {
		return t
	}
	return nil
}

// presents lists what the API has, by name. It is called with mu held.
func (r *Registry) presents() []*tracked {
	return r.those((*tracked).there)
}

func (r *Registry) those(which func(*tracked) bool) []*tracked {
	var found []*tracked
	for _, t := range r.tracked {
		if which(t) {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, func(a, b *tracked) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.uid, b.uid))
	})
	return found
}

// has reports whether the API has an intercept of that name. It is called with mu held.
func (r *Registry) has(name string) bool {
	return slices.ContainsFunc(r.presents(), func(t *tracked) bool { return t.name == name })
}

// overNamed returns the intercept of that name which has ended, nil if there is none. It is called
// with mu held.
func (r *Registry) overNamed(name string) *tracked {
	for _, t := range r.those((*tracked).over) {
		if t.name == name {
			return t
		}
	}
	return nil
}

// appear is the transition to present. It is called with mu held.
func (r *Registry) appear(t *tracked, object *v1alpha1.Intercept) {
	r.clock++
	t.state, t.why, t.added = present, "", r.clock
	t.raw, t.ref = object, refOf(object)
}

// vanish is the transition from present or leaving when the API lacks an intercept. It is called with
// mu held.
func (r *Registry) vanish(t *tracked, why string) {
	switch {
	case t.state == leaving:
		t.state, why = left, "left"
		t.raw, t.object = nil, nil
	case r.reserved[t.name] != nil: // the command that creates it is told
		delete(r.tracked, t.uid)
	default:
		r.end(t, why)
	}
	r.log.Info("intercept gone", "name", t.name, "namespace", t.namespace, "reason", why)
	r.forgetNamespace(t.namespace)
	r.notify()
}

// end is the transition to ended, or to lost if the manager ended it because the laptop was away.
// It forgets an earlier intercept of that name. It is called with mu held.
func (r *Registry) end(t *tracked, why string) {
	if before := r.overNamed(t.name); before != nil && before != t {
		delete(r.tracked, before.uid)
	}
	t.state, t.why, t.at, t.told = ended, why, r.wall(), false
	if away, ok := r.expired(t); ok && why == endedBySomebody {
		t.state, t.why = lost, r.awayTooLong(away)
	}
}
