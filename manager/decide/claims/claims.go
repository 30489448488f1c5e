// SPDX-License-Identifier: Apache-2.0

// Package claims decides which intercepts may have what they ask for. An intercept claims a port of
// some pods. If two claims could match the same connection or request, the one that was accepted
// earlier keeps it, otherwise the older one gets it.
package claims

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/internal/match"
)

// Target is a port of a pod, where claims meet. Ports of workloads and ReplicaSets are targets too, so
// that claims meet while there are no pods.
type Target struct {
	UID  types.UID
	Port int32
	UDP  bool
}

// Claim is what one intercept asks for.
type Claim struct {
	UID     types.UID
	Created time.Time
	// Asked identifies the port as it was asked for. If it changes, the claim has moved and has to
	// wait its turn again.
	Asked   string
	Targets []Target
	TCP     bool // every connection; otherwise what Rule matches
	Rule    match.Rule
	// Wiretap is set for a claim that takes nothing from any other.
	Wiretap bool
	// Accepted is set if the claim was accepted before the table knew it. Set ignores it for a
	// claim that the table has.
	Accepted bool
}

func (c *Claim) overlaps(other *Claim) bool {
	return !c.Wiretap && !other.Wiretap && (c.TCP || other.TCP || c.Rule.Overlaps(other.Rule))
}

func older(a, b *entry) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID))
}

// Verdict is the decision about one claim.
type Verdict struct {
	Accepted bool
	// Holder is the accepted claim that overlaps.
	Holder types.UID
}

type entry struct {
	Claim
	verdict Verdict
}

// Table has all claims. It is not safe for concurrent use.
type Table struct {
	entries map[types.UID]*entry
	targets map[Target]map[*entry]struct{}
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{entries: map[types.UID]*entry{}, targets: map[Target]map[*entry]struct{}{}}
}

// Verdict returns the decision about a claim. A claim that is not in the table has not been
// accepted.
func (t *Table) Verdict(uid types.UID) Verdict {
	if e := t.entries[uid]; e != nil {
		return e.verdict
	}
	return Verdict{}
}

// Would returns the verdict that c would get in place of its intercept's present claim.
func (t *Table) Would(c Claim) Verdict {
	return t.decide(&entry{Claim: c})
}

// Set adds or replaces a claim and decides about it. It returns the other claims whose verdicts
// have changed by that.
func (t *Table) Set(c Claim) []types.UID {
	e := t.entries[c.UID]
	var lost, added []Target
	if e == nil {
		e = &entry{Claim: c, verdict: Verdict{Accepted: c.Accepted}}
		t.entries[c.UID] = e
		added = c.Targets
	} else {
		lost, added = difference(e.Targets, c.Targets), difference(c.Targets, e.Targets)
		if e.Asked != c.Asked {
			e.verdict = Verdict{}
			lost = e.Targets
		}
		e.Claim = c
	}
	for _, s := range lost {
		t.leave(s, e)
	}
	for _, s := range e.Targets {
		t.enter(s, e)
	}
	var changed []types.UID
	if e.verdict.Accepted {
		freed, revoked := t.defend(e, added)
		lost = append(lost, freed...)
		changed = revoked
	} else {
		e.verdict = t.decide(e)
	}
	return t.release(lost, e, changed)
}

// Remove removes a claim. It returns the other claims whose verdicts have changed by that.
func (t *Table) Remove(uid types.UID) []types.UID {
	e := t.entries[uid]
	if e == nil {
		return nil
	}
	delete(t.entries, uid)
	for _, s := range e.Targets {
		t.leave(s, e)
	}
	if !e.verdict.Accepted {
		return nil
	}
	return t.release(e.Targets, nil, nil)
}

// defend decides between an accepted claim and other accepted claims at targets that are new to it,
// as when a pod appears that two claims share. The older claim stays accepted.
func (t *Table) defend(e *entry, added []Target) (freed []Target, revoked []types.UID) {
	rivals := t.rivals(e, added)
	if len(rivals) == 0 {
		return nil, nil
	}
	if older(rivals[0], e) < 0 {
		e.verdict = Verdict{Holder: rivals[0].UID}
		return e.Targets, nil
	}
	for _, r := range rivals {
		r.verdict = Verdict{Holder: e.UID}
		revoked = append(revoked, r.UID)
		freed = append(freed, r.Targets...)
	}
	return freed, revoked
}

// decide accepts a claim unless an accepted claim overlaps with it.
func (t *Table) decide(e *entry) Verdict {
	if rivals := t.rivals(e, e.Targets); len(rivals) > 0 {
		return Verdict{Holder: rivals[0].UID}
	}
	return Verdict{Accepted: true}
}

// rivals returns the accepted claims at the targets that overlap with e, oldest first.
func (t *Table) rivals(e *entry, at []Target) []*entry {
	seen := map[*entry]struct{}{e: {}}
	var found []*entry
	for _, s := range at {
		for other := range t.targets[s] {
			if _, ok := seen[other]; ok || !other.verdict.Accepted || other.UID == e.UID {
				continue
			}
			seen[other] = struct{}{}
			if e.overlaps(&other.Claim) {
				found = append(found, other)
			}
		}
	}
	slices.SortFunc(found, older)
	return found
}

// release decides again about the claims that wait at targets that were given up, oldest first.
func (t *Table) release(targets []Target, except *entry, changed []types.UID) []types.UID {
	waiting := map[*entry]struct{}{}
	for _, s := range targets {
		for e := range t.targets[s] {
			if !e.verdict.Accepted && e != except {
				waiting[e] = struct{}{}
			}
		}
	}
	var inOrder []*entry
	for e := range waiting {
		inOrder = append(inOrder, e)
	}
	slices.SortFunc(inOrder, older)
	for _, e := range inOrder {
		before := e.verdict
		if e.verdict = t.decide(e); e.verdict != before && !slices.Contains(changed, e.UID) {
			changed = append(changed, e.UID)
		}
	}
	return changed
}

func (t *Table) enter(s Target, e *entry) {
	if t.targets[s] == nil {
		t.targets[s] = map[*entry]struct{}{}
	}
	t.targets[s][e] = struct{}{}
}

func (t *Table) leave(s Target, e *entry) {
	delete(t.targets[s], e)
	if len(t.targets[s]) == 0 {
		delete(t.targets, s)
	}
}

// difference returns what is in a and not in b.
func difference(a, b []Target) []Target {
	if slices.Equal(a, b) {
		return nil
	}
	in := make(map[Target]struct{}, len(b))
	for _, s := range b {
		in[s] = struct{}{}
	}
	var only []Target
	for _, s := range a {
		if _, ok := in[s]; !ok {
			only = append(only, s)
		}
	}
	return only
}
