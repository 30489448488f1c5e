// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// Presence is how the manager has seen this laptop.
type Presence struct {
	Connected bool
	Since     time.Time     // by the wall clock: since when it is connected
	Away      time.Duration // how long it was away before or, if it is not connected, has been away
	// how long the manager keeps the intercepts of an absent laptop; 0: not known
	Grace time.Duration
}

// Reasons for the end of an intercept that this client did not end.
const (
	endedBySomebody = "somebody deleted it in the cluster"
	endedUnseen     = "it ended while no daemon ran here: the traffic manager ends intercepts of a laptop that is away for too long, or somebody deleted it"
	endedElsewhere  = "it was made by an older daemon and leads to %s, which may have been written by somebody else: run the command again"
	endedWithKind   = "sidestep was removed from the cluster"
	endedOwnerless  = "the command that held it has ended, and so had the daemon that would have ended it"
)

// Ended is an intercept that has ended, and not because this client ended it.
type Ended struct {
	Namespace, WorkloadKind, Workload, Name string
	Why                                     string
	At                                      time.Time
	// Again reports that it will be recreated once there is a connection.
	Again bool
}

func (r *Registry) awayTooLong(away time.Duration) string {
	return fmt.Sprintf("this laptop was away for %s, and the traffic manager keeps intercepts for %s",
		short(away), short(r.presence().Grace))
}

// expired reports whether the manager has ended an intercept because the laptop was away, and for
// how long it was. It is called with mu held.
func (r *Registry) expired(t *tracked) (time.Duration, bool) {
	p := r.presence()
	if p.Grace <= 0 || p.Away < p.Grace || p.Connected && t.seen.After(p.Since) {
		return 0, false
	}
	return p.Away, true
}

// Ended lists, by name, the intercepts that have ended without this client's doing and were not
// recreated. If news is true, it lists only those that no caller has asked for yet, and marks them.
func (r *Registry) Ended(news bool) []Ended {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Ended
	for _, t := range r.those((*tracked).over) {
		if news && (t.told || t.again()) || t.state == restoring && r.has(t.name) {
			continue
		}
		t.told = t.told || news
		all = append(all, Ended{Namespace: t.namespace, WorkloadKind: t.kind, Workload: t.workload,
			Name: t.name, Why: t.why, At: t.at, Again: t.again()})
	}
	return all
}

// dismiss forgets that an intercept has ended, unless it is being recreated. It is called with mu
// held.
func (r *Registry) dismiss(name string) {
	t := r.overNamed(name)
	if t == nil || t.state == restoring {
		return
	}
	delete(r.tracked, t.uid)
	r.forgetNamespace(t.namespace)
}

// Restore recreates the intercepts that the manager ended while the laptop was away, until ctx ends
// with the connection.
func (r *Registry) Restore(ctx context.Context) {
	var making sync.WaitGroup
	defer making.Wait()
	for {
		r.mu.Lock()
		changed := r.changed
		for _, t := range r.those(func(t *tracked) bool { return t.state == lost }) {
			t.state = restoring
			making.Go(func() { r.restore(ctx, t) })
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) restore(ctx context.Context, t *tracked) {
	a := &Ask{Namespace: t.namespace, Spec: *t.object.Spec.DeepCopy(), Timeout: defaultTimeout}
	var made types.UID
	err := r.Make(ctx, a, func(string) {}, func(i *v1alpha1.Intercept) error { made = i.UID; return nil })
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.log.Info("intercept recreated", "name", t.name, "namespace", t.namespace)
		t.state, t.next = replaced, made
		if next := r.tracked[made]; next != nil && t.process != 0 {
			next.process, next.held = t.process, t.held
		}
	case ctx.Err() != nil: // the connection has ended; the next one tries again
		t.state = lost
	default:
		r.log.Warn("intercept could not be recreated", "name", t.name, "namespace", t.namespace, "error", err)
		t.state, t.at = ended, r.wall()
		t.why += "; it cannot be recreated: " + status.Convert(err).Message()
	}
	r.forgetNamespace(t.namespace)
	r.notify()
}

// short formats a duration as people say it: 1h15m, 40s.
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

// Still reports whether an intercept is still there, and under which UID, which changes when it is
// recreated.
func (r *Registry) Still(uid types.UID) (types.UID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tracked[uid]
	for t != nil && t.state == replaced {
		uid, t = t.next, r.tracked[t.next]
	}
	if t != nil && (t.there() || t.again()) {
		return uid, true
	}
	return uid, false
}
