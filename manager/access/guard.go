// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/internal/names"
)

// ValidatingAdmissionPolicies, and their bindings, on which the manager relies.
const (
	// EnvironmentPolicy admits spec.environment only from those who may read environments.
	EnvironmentPolicy = names.Environment
	// HolderPolicy ensures that spec.client.user of an Intercept is its creator.
	HolderPolicy = "sidestep-holder"
	// LoginPolicy ensures that a Login names the user and the groups of its creator.
	LoginPolicy = "sidestep-login"
	// RightsPolicy admits ports of pods, wiretaps and whole ports only from those who may have them.
	RightsPolicy = "sidestep-rights"
)

const (
	// guardFor is how long a policy that was in force counts as in force.
	guardFor = 30 * time.Second
	// guardAgain is how long a policy that was not in force counts as such.
	guardAgain = 2 * time.Second
	// settle is how long API servers take to enforce a policy that has been created: they look for
	// new ones every second.
	settle = 2 * time.Second
)

// Guard knows which policies the API server enforces. It is safe for concurrent use.
type Guard struct {
	client client.Reader
	now    func() time.Time

	mu    sync.Mutex
	known map[string]guarded
}

// guarded is what is known about one policy.
type guarded struct {
	asked   time.Time
	inForce bool
	since   time.Time // it has admitted what was created after this
}

// NewGuard returns a Guard that reads from c, which must not be a cache.
func NewGuard(c client.Reader, now func() time.Time) *Guard {
	return &Guard{client: c, now: now, known: map[string]guarded{}}
}

// InForce reports whether a policy is in force, from a recent look. The policy has admitted what
// was created after since. While the API server does not answer, its last answer holds.
func (g *Guard) InForce(ctx context.Context, policy string) (since time.Time, inForce bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last, asked := g.known[policy]
	limit := guardFor
	if !last.inForce {
		limit = guardAgain
	}
	if asked && g.now().Sub(last.asked) < limit {
		return last.since, last.inForce, nil
	}
	now, err := g.read(ctx, policy)
	switch {
	case err != nil && asked:
		last.asked = g.now()
		now, err = last, nil
	case err != nil:
		return time.Time{}, false, err
	case asked && !last.inForce && now.inForce && now.since.Before(now.asked):
		// The policy was there, and something else was wrong with it. What was created meanwhile
		// proves nothing.
		now.since = now.asked
	case asked && last.inForce && now.inForce && now.since.Before(last.since):
		now.since = last.since
	}
	g.known[policy] = now
	return now.since, now.inForce, nil
}

// Now reports whether a policy is in force at this moment.
func (g *Guard) Now(ctx context.Context, policy string) (bool, error) {
	now, err := g.read(ctx, policy)
	return now.inForce, err
}

func (g *Guard) read(ctx context.Context, name string) (guarded, error) {
	found := guarded{asked: g.now()}
	policy, binding := &admissionv1.ValidatingAdmissionPolicy{}, &admissionv1.ValidatingAdmissionPolicyBinding{}
	for _, o := range []client.Object{policy, binding} {
		if err := g.client.Get(ctx, client.ObjectKey{Name: name}, o); apierrors.IsNotFound(err) {
			return found, nil
		} else if err != nil {
			return found, fmt.Errorf("look up admission policy %s: %w", name, err)
		}
		if enforced := o.GetCreationTimestamp().Add(settle); enforced.After(found.since) {
			found.since = enforced
		}
	}
	fails := policy.Spec.FailurePolicy == nil || *policy.Spec.FailurePolicy == admissionv1.Fail
	found.inForce = fails && binding.Spec.PolicyName == name &&
		slices.Contains(binding.Spec.ValidationActions, admissionv1.Deny)
	return found, nil
}
