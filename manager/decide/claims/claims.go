// SPDX-License-Identifier: Apache-2.0

// Package claims decides which intercepts may have what they ask for. An intercept claims a port of
// some pods; where two claims could want the same connection or request, the one that already had
// it keeps it, and otherwise the older one gets it.
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
	// Asked names the port that was asked for, in whatever words. When it changes, the claim has
	// moved and has to wait its turn again.
	Asked   string
	Targets []Target
	TCP     bool // every connection; else what Rule matches
	Rule    match.Rule
	// Wiretap takes nothing from anybody.
	Wiretap bool
	// Accepted tells of an acceptance on record from before the table knew the claim; it is ignored
	// afterwards.
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
	// Holder is the accepted claim in the way.
	Holder types.UID
}

type entry struct {
	Claim
	verdict Verdict
}

// Table holds all claims. It is not safe for concurrent use.
type Table struct {
	entries map[types.UID]*entry
	targets map[Target]map[*entry]struct{}
}

// NewTable makes an empty table.
func NewTable() *Table {
	return &Table{entries: map[types.UID]*entry{}, targets: map[Target]map[*entry]struct{}{}}
}

// Verdict gives the decision about a claim; a claim that is not in the table has not been accepted.
func (t *Table) Verdict(uid types.UID) Verdict {
	if e := t.entries[uid]; e != nil {
		return e.verdict
	}
	return Verdict{}
}

// Would gives the decision that a claim would get if it replaced the one that the table has of its
// intercept.
func (t *Table) Would(c Claim) Verdict {
	return t.decide(&entry{Claim: c})
}

// Set puts in or replaces a claim and decides about it. It returns the other claims whose verdicts
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

// Remove takes a claim out, and returns the other claims whose verdicts have changed by that.
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

// defend settles an accepted claim's meeting with other accepted claims at targets that are new to
// it, as when a pod appears that two claims turn out to share. The older one keeps its place.
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

// decide looks for an accepted claim in the way.
func (t *Table) decide(e *entry) Verdict {
	if rivals := t.rivals(e, e.Targets); len(rivals) > 0 {
		return Verdict{Holder: rivals[0].UID}
	}
	return Verdict{Accepted: true}
}

// rivals gives the accepted claims at the targets that overlap with e, oldest first.
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

// release decides again about the claims that wait at targets which have been given up, oldest first.
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

// difference gives what is in a and not in b.
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
