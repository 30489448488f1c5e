// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"slices"
	"time"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/decide/claims"
	"sidestep.dev/sidestep/manager/decide/plan"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

const (
	// moveLimit is how long an intercept that moves keeps its old port if the new one does not
	// become active.
	moveLimit = 10 * time.Second
	// moveRetry is the pause before a move that met a conflict is tried again.
	moveRetry = 5 * time.Second
)

// grant is the port that an intercept has been granted. If its spec asks for another port, the
// intercept keeps this one until it has the other: a move leaves no gap, and a move that fails
// changes nothing.
type grant struct {
	held          bool
	service, port string
	protocol      v1alpha1.Protocol
	generation    int64     // of the spec that asked for it
	leaving       time.Time // when the move began; zero: it does not move
}

// decideClaim decides about the intercept's claim and returns its placements.
func (c *Controller) decideClaim(e *entry, f *findings) []plan.Placement {
	old := c.left(e, f)
	switch {
	case old != nil:
		return c.move(e, f, old)
	case f.invalid != nil:
		c.again(c.claims.Remove(e.uid))
	default:
		c.again(c.claims.Set(e.claim(f.resolution)))
		f.verdict = c.claims.Verdict(e.uid)
	}
	e.granted = grant{}
	if !f.verdict.Accepted {
		return nil
	}
	e.granted = grantOf(e, f.resolution)
	return e.placements(f.resolution, f.connected)
}

func grantOf(e *entry, res *resolve.Resolution) grant {
	return grant{held: true, service: res.Service, port: res.Port, protocol: res.Protocol,
		generation: e.intercept.Generation}
}

// left returns the resolution of the granted port if the spec now asks for another one.
func (c *Controller) left(e *entry, f *findings) *resolve.Resolution {
	s := e.granted
	if !s.held || s.generation == e.intercept.Generation {
		return nil
	}
	if res := f.resolution; f.invalid == nil && res.Service == s.service && res.Port == s.port &&
		res.Protocol == s.protocol {
		return nil
	}
	before := *e.intercept
	before.Spec.Service, before.Spec.Port, before.Spec.Protocol = s.service, s.port, s.protocol
	old, err := resolve.Intercept(c.informers, &before)
	if err != nil {
		return nil // the port no longer exists
	}
	return old
}

// move returns the placements of an intercept that moves.
func (c *Controller) move(e *entry, f *findings, old *resolve.Resolution) []plan.Placement {
	f.stays = portOf(old)
	if f.invalid == nil {
		f.verdict = c.claims.Would(e.claim(f.resolution))
	}
	if !f.verdict.Accepted {
		c.again(c.claims.Set(e.claim(old)))
		if !c.claims.Verdict(e.uid).Accepted {
			e.granted, f.stays = grant{}, ""
			return nil
		}
		if f.invalid == nil {
			c.queue.AddAfter(key(e.intercept), moveRetry)
		}
		return e.placements(old, f.connected)
	}
	both := e.claim(f.resolution)
	both.Targets = append(both.Targets, e.claim(old).Targets...)
	slices.SortFunc(both.Targets, compareTargets)
	both.Targets = slices.Compact(both.Targets)
	c.again(c.claims.Set(both))
	f.verdict = c.claims.Verdict(e.uid)
	if e.granted.leaving.IsZero() {
		e.granted.leaving = time.Now()
		c.queue.AddAfter(key(e.intercept), moveLimit)
	}
	return append(e.placements(old, f.connected), e.placements(f.resolution, f.connected)...)
}

// arrive ends a move when every pod steers at the new port, there is no pod or laptop, or the move
// has taken too long.
func (c *Controller) arrive(e *entry, f *findings, state v1alpha1.State) {
	if f.stays == "" || !f.verdict.Accepted {
		return
	}
	switch state {
	case v1alpha1.StateActive, v1alpha1.StateNoPods, v1alpha1.StateDisconnected:
	default:
		if time.Since(e.granted.leaving) < moveLimit {
			return
		}
	}
	e.granted = grantOf(e, f.resolution)
	c.queue.Add(key(e.intercept))
}

func compareTargets(a, b claims.Target) int {
	return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.Port, b.Port),
		cmp.Compare(boolean(a.UDP), boolean(b.UDP)))
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
