// SPDX-License-Identifier: Apache-2.0

package claims

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Budget shares out what the intercepts of one namespace may cost the manager and the node agents.
// An intercept that has a share keeps it. Shares that are returned go to the oldest intercepts that
// wait. It is not safe for concurrent use.
type Budget struct {
	limit  int
	spaces map[string]*space
}

type space struct {
	used   int
	shares map[types.UID]*share
}

// share is what one intercept asks for of its namespace's budget.
type share struct {
	uid     types.UID
	created time.Time
	size    int
	granted bool
}

// NewBudget returns a budget of limit for each namespace.
func NewBudget(limit int) *Budget { return &Budget{limit: limit, spaces: map[string]*space{}} }

// Ask reports whether an intercept may have a share of this size, and returns the others whose
// answer has changed by that. had means that the intercept had a share before the budget knew it:
// if necessary, that share is taken from younger ones.
func (b *Budget) Ask(namespace string, uid types.UID, created time.Time, size int, had bool) (
	granted bool, changed []types.UID) {
	if size == 0 {
		return true, nil
	}
	s := b.spaces[namespace]
	if s == nil {
		s = &space{shares: map[types.UID]*share{}}
		b.spaces[namespace] = s
	}
	if known := s.shares[uid]; known != nil {
		return known.granted, nil
	}
	asked := &share{uid: uid, created: created, size: size}
	s.shares[uid] = asked
	if had {
		changed = b.displace(s, asked)
	}
	if s.used+size <= b.limit {
		asked.granted = true
		s.used += size
	}
	return asked.granted, changed
}

// displace takes shares from intercepts younger than asked, youngest first, if that makes enough
// room.
func (b *Budget) displace(s *space, asked *share) (changed []types.UID) {
	var younger []*share
	free := b.limit - s.used
	for _, other := range s.shares {
		if other.granted && before(asked, other) < 0 {
			younger = append(younger, other)
			free += other.size
		}
	}
	if free < asked.size {
		return nil
	}
	slices.SortFunc(younger, func(x, y *share) int { return before(y, x) })
	for _, other := range younger {
		if s.used+asked.size <= b.limit {
			break
		}
		other.granted = false
		s.used -= other.size
		changed = append(changed, other.uid)
	}
	return changed
}

// Return returns the share of an intercept that has ended. It returns the intercepts that have a
// share now and had none.
func (b *Budget) Return(namespace string, uid types.UID) (changed []types.UID) {
	s := b.spaces[namespace]
	if s == nil || s.shares[uid] == nil {
		return nil
	}
	if s.shares[uid].granted {
		s.used -= s.shares[uid].size
	}
	delete(s.shares, uid)
	if len(s.shares) == 0 {
		delete(b.spaces, namespace)
		return nil
	}
	var waiting []*share
	for _, other := range s.shares {
		if !other.granted {
			waiting = append(waiting, other)
		}
	}
	slices.SortFunc(waiting, before)
	for _, other := range waiting {
		if s.used+other.size <= b.limit {
			other.granted = true
			s.used += other.size
			changed = append(changed, other.uid)
		}
	}
	return changed
}

func before(a, b *share) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.uid, b.uid))
}
