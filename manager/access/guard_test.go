// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// guards is a Guard with a clock and an API server that may fail.
type guards struct {
	client.Client
	*Guard
	clock time.Time
	fails error
	asked int
}

func newGuards(t *testing.T, objects ...client.Object) *guards {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, admissionv1.AddToScheme(scheme))
	g := &guards{clock: time.Now().Truncate(time.Second)}
	g.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch,
			key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			g.asked++
			if g.fails != nil {
				return g.fails
			}
			return c.Get(ctx, key, o, opts...)
		}}).Build()
	g.Guard = NewGuard(g.Client, func() time.Time { return g.clock })
	return g
}

func holderPolicy(created time.Time) (*admissionv1.ValidatingAdmissionPolicy,
	*admissionv1.ValidatingAdmissionPolicyBinding) {
	at := metav1.ObjectMeta{Name: HolderPolicy, CreationTimestamp: metav1.NewTime(created)}
	return &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: at},
		&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: at,
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: HolderPolicy,
				ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}}
}

// says checks whether the policy is in force, and since when.
func (g *guards) says(t *testing.T, want bool, since time.Time) {
	t.Helper()
	at, inForce, err := g.InForce(t.Context(), HolderPolicy)
	require.NoError(t, err)
	assert.Equal(t, want, inForce)
	if want {
		assert.True(t, since.Equal(at), "since %s, not %s", at, since)
	}
}

func TestAPolicyIsInForceOnceItsBindingIsThereToo(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	policy, binding := holderPolicy(start.Add(-time.Hour))
	g := newGuards(t, policy)
	g.says(t, false, time.Time{})
	binding.CreationTimestamp = metav1.NewTime(g.clock.Add(time.Second))
	require.NoError(t, g.Create(t.Context(), binding))
	g.says(t, false, time.Time{}) // as was found out a moment ago
	g.clock = g.clock.Add(guardAgain)
	g.says(t, true, binding.CreationTimestamp.Add(settle))

	asked := g.asked
	g.clock = g.clock.Add(guardFor - time.Second)
	g.says(t, true, binding.CreationTimestamp.Add(settle))
	assert.Equal(t, asked, g.asked, "the API server is not asked all the time")
	g.clock = g.clock.Add(time.Second)
	g.fails = errors.New("busy")
	g.says(t, true, binding.CreationTimestamp.Add(settle)) // what it said last holds
	g.fails = nil
	require.NoError(t, g.Delete(t.Context(), policy))
	g.clock = g.clock.Add(guardFor)
	g.says(t, false, time.Time{})
}

func TestAPolicyThatDeniesNothingIsNotInForce(t *testing.T) {
	created := time.Now().Add(-time.Hour).Truncate(time.Second)
	ignore := admissionv1.Ignore
	for name, change := range map[string]func(*admissionv1.ValidatingAdmissionPolicy,
		*admissionv1.ValidatingAdmissionPolicyBinding){
		"it lets pass what it cannot decide": func(p *admissionv1.ValidatingAdmissionPolicy,
			_ *admissionv1.ValidatingAdmissionPolicyBinding) {
			p.Spec.FailurePolicy = &ignore
		},
		"it only warns": func(_ *admissionv1.ValidatingAdmissionPolicy,
			b *admissionv1.ValidatingAdmissionPolicyBinding) {
			b.Spec.ValidationActions = []admissionv1.ValidationAction{admissionv1.Warn}
		},
		"the binding is another's": func(_ *admissionv1.ValidatingAdmissionPolicy,
			b *admissionv1.ValidatingAdmissionPolicyBinding) {
			b.Spec.PolicyName = "other"
		},
	} {
		t.Run(name, func(t *testing.T) {
			policy, binding := holderPolicy(created)
			change(policy, binding)
			g := newGuards(t, policy, binding)
			g.says(t, false, time.Time{})
			right, rightBinding := holderPolicy(created)
			policy.Spec, binding.Spec = right.Spec, rightBinding.Spec
			require.NoError(t, g.Update(t.Context(), policy))
			require.NoError(t, g.Update(t.Context(), binding))
			g.clock = g.clock.Add(guardAgain)
			g.says(t, true, g.clock) // what was created before proves nothing
		})
	}
}

func TestNothingIsKnownBeforeTheAPIServerHasAnswered(t *testing.T) {
	g := newGuards(t)
	g.fails = errors.New("busy")
	_, _, err := g.InForce(t.Context(), HolderPolicy)
	assert.ErrorContains(t, err, "look up admission policy sidestep-holder: busy")
}
