// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/manager/access"
)

// vouching are the policies by which the API server vouches for users and checks rights.
func vouching(t *testing.T) []client.Object {
	t.Helper()
	var all []client.Object
	for _, name := range []string{access.HolderPolicy, access.LoginPolicy, access.RightsPolicy} {
		at := metav1.ObjectMeta{Name: name}
		all = append(all, &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: at},
			&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: at,
				Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: name,
					ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}})
	}
	return all
}

// strict are the options of a manager that admits no older laptops.
func strict(o *Options) { o.OlderLaptops = false }

// logIn creates a Login of a user for the session of a laptop.
func (k *kube) logIn(t *testing.T, user, laptop string) *v1alpha1.Login {
	t.Helper()
	l := login(user, laptop, time.Hour)
	l.Name, l.GenerateName = user+"-"+laptop, ""
	l.CreationTimestamp = metav1.Now()
	k.create(t, l)
	return l
}

// of is the intercept of a user who names themselves.
func of(user string, ic *v1alpha1.Intercept) *v1alpha1.Intercept {
	ic.Spec.Client.User = user
	return ic
}

// ends waits until a connection ends, before which nothing comes.
func ends(t *testing.T, c *tunnel.Conn) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	select {
	case err := <-ended:
		assert.Error(t, err)
	case <-time.After(patient):
		t.Error("the connection goes on")
	}
}

// refusedFor waits until an intercept is refused for a reason, and returns what is said.
func (k *kube) refusedFor(t *testing.T, name, reason string) string {
	t.Helper()
	var st v1alpha1.InterceptStatus
	ok := assert.Eventually(t, func() bool {
		st = k.intercept(t, name).Status
		condition := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionResolved)
		return st.State == v1alpha1.StateInvalid && condition != nil && condition.Reason == reason
	}, patient, often)
	require.True(t, ok, "intercept %s is %s: %s", name, st.State, st.Message)
	return st.Message
}

func TestAnInterceptIsServedForWhomTheAPIServerVouches(t *testing.T) {
	k := newKube(vouching(t)...)
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "ann", 0)
	k.create(t, of("ann", asks("ann", "http", "ann")))
	k.until(t, "ann", v1alpha1.StateActive)

	var theirLogin *v1alpha1.Login
	t.Run("no other user", func(t *testing.T) {
		theirs := of("eve", asks("ann", "http", "eve"))
		theirs.Name = "eve"
		k.create(t, theirs)
		assert.Contains(t, k.refusedFor(t, "eve", access.NotProven),
			`the intercept is user "eve"'s, and the laptop has not proven to be theirs`)
		a.has(t, "p1:8080=ann")
	})
	t.Run("unless they say so themselves", func(t *testing.T) {
		theirLogin = k.logIn(t, "eve", "ann")
		k.until(t, "eve", v1alpha1.StateActive)
		a.has(t, "p1:8080=ann", "p1:8080=eve")
	})
	t.Run("and for as long as they do", func(t *testing.T) {
		require.NoError(t, k.Delete(t.Context(), theirLogin))
		k.refusedFor(t, "eve", access.NotProven)
		a.has(t, "p1:8080=ann")
		assert.Equal(t, v1alpha1.StateActive, k.intercept(t, "ann").Status.State)
	})
	t.Run("an intercept without a user is any of theirs whom the session is proven for", func(t *testing.T) {
		k.lacking.Store("ann create intercepts", true)
		older := asks("ann", "http", "older")
		older.Name = "older"
		k.create(t, older)
		assert.Contains(t, k.refusedFor(t, "older", access.Forbidden),
			`user "ann" cannot create resource "intercepts"`)
		k.logIn(t, "bob", "ann")
		k.until(t, "older", v1alpha1.StateActive)
	})
}

func TestInterceptsFromBeforeThePolicyAreServedForAWhile(t *testing.T) {
	policies := vouching(t)
	for _, o := range policies {
		o.SetCreationTimestamp(metav1.NewTime(time.Now().Add(-time.Minute)))
	}
	k := newKube(policies...)
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict, func(o *Options) { o.ReviewRights, o.SessionGrace = false, time.Second })
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "ann", 0)
	old := of("ann", asks("ann", "http", "ann"))
	old.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Hour))
	k.create(t, old)
	a.has(t, "p1:8080=ann")
	assert.Contains(t, k.refusedFor(t, "ann", access.NotProven), "end the intercept and create another")
	a.has(t)
}

func TestNothingIsServedWhereNobodyVouches(t *testing.T) {
	policies := vouching(t)
	k := newKube(policies[2:]...) // but for sidestep-holder
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "ann", 0)
	k.create(t, of("ann", asks("ann", "http", "ann")))
	assert.Contains(t, k.refusedFor(t, "ann", access.NotProven), "the admission policy sidestep-holder")
	a.has(t)
}

func TestARightThatIsWithdrawnIsOfNoUseAnyMore(t *testing.T) {
	for what, change := range map[string]func(*v1alpha1.InterceptSpec){
		"create intercepts": func(s *v1alpha1.InterceptSpec) {},
		"get intercepts/wholeport": func(s *v1alpha1.InterceptSpec) {
			s.HTTP = &v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Prefix: new("/")}}
		},
		"get intercepts/wiretap": func(s *v1alpha1.InterceptSpec) { s.Wiretap = true },
	} {
		t.Run(what, func(t *testing.T) {
			k := newKube(vouching(t)...)
			k.logIn(t, "ann", "ann")
			m := start(t, k, strict)
			k.pod(t, k.shop(t), "p1", "node-1")
			a := m.tappingAgent(t, "node-1")
			l := m.laptop(t, "ann", 1)
			ic := of("ann", asks("ann", "http", "ann"))
			change(&ic.Spec)
			if ic.Spec.Wiretap {
				ic.Spec.Client.KeyHash = v1alpha1.WiretapKeyHash(ic.Spec.Client.KeyHash)
			}
			k.create(t, ic)
			k.until(t, "ann", v1alpha1.StateActive)
			c, _ := a.open(t, string(ic.UID))
			require.NoError(t, (<-l.opens).conn.Answer(tunnelpb.Opened_OK, ""))
			require.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
			k.lacking.Store("ann "+what, true)
			says := k.refusedFor(t, "ann", access.Forbidden)
			assert.Contains(t, says, `user "ann" cannot `)
			a.has(t)
			ends(t, c)

			// What a move holds on to is no way around it.
			k.ask(t, "ann", "nowhere")
			require.Eventually(t, func() bool { return k.intercept(t, "ann").Status.ObservedGeneration == 2 },
				patient, often)
			k.refusedFor(t, "ann", access.Forbidden)
			a.has(t)

			k.ask(t, "ann", "http")
			k.lacking.Clear()
			k.until(t, "ann", v1alpha1.StateActive)
		})
	}
}

func TestAMoveKeepsNothingOfAnInterceptThatIsRefused(t *testing.T) {
	k := newKube(vouching(t)...)
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	m.laptop(t, "ann", 0)
	k.create(t, of("ann", asks("ann", "http", "")))
	k.until(t, "ann", v1alpha1.StateActive)
	k.ask(t, "ann", "nowhere") // it stays at its port
	require.Contains(t, k.until(t, "ann", v1alpha1.StateInvalid).Status.Message, "stays intercepted")
	a.has(t, "p1:8080=ann")
	k.lacking.Store("ann get intercepts/wholeport", true)
	a.has(t)
	assert.NotContains(t, k.refusedFor(t, "ann", access.Forbidden), "stays intercepted")
}

func TestConnectionsToPodsEndWithTheRightToThem(t *testing.T) {
	k := newKube(vouching(t)...)
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	a.parks(t)
	l := m.laptop(t, "ann", 0)
	k.create(t, of("ann", reaching("ann")))
	ic := k.until(t, "ann", v1alpha1.StateActive)
	c := l.toPod(t, ic, 8081)
	require.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
	who := []string{"audit=to-pod", "user=ann ", "holder=ann@laptop", "intercept=shop/ann", "pod=p1",
		"port=8081"}
	m.logs(t, append(who, `msg="connection to a pod opened"`)...)

	k.lacking.Store("ann get intercepts/topod", true)
	ends(t, c)
	m.logs(t, append(who, `msg="connection to a pod ended"`, "duration=")...)
	refused := l.toPod(t, ic, 8081)
	assert.Equal(t, tunnelpb.Opened_UNKNOWN, opened(t, refused).Result)
	require.Eventually(t, func() bool { return k.intercept(t, "ann").Status.Message != "" }, patient, often)
	st := k.intercept(t, "ann").Status
	assert.Equal(t, v1alpha1.StateActive, st.State, "its requests still come")
	assert.Contains(t, st.Message, `user "ann" cannot get resource "intercepts/topod"`)
	a.has(t, "p1:8080=ann")
}

func TestAnEnvironmentIsNotGivenToWhoMayNotReadItAnyMore(t *testing.T) {
	k := newKube(append(vouching(t), guard(t)...)...)
	k.logIn(t, "ann", "ann")
	m := start(t, k, strict, func(o *Options) { o.ReviewEvery = time.Hour })
	k.runs(t, k.pod(t, k.shop(t), "p1", "node-1"), time.Minute)
	m.agent(t, "node-1").environments(t, shows)
	l := m.laptop(t, "ann", 0)
	k.create(t, of("ann", asking("ann", "http", "ann")))
	ic := k.until(t, "ann", v1alpha1.StateActive)
	require.Eventually(t, func() bool { _, err := l.environment(t, ic); return err == nil }, patient, often)
	who := []string{"audit=environment", "user=ann", "holder=ann@laptop", "intercept=shop/ann"}
	m.logs(t, append(who, `msg="environment given to the laptop"`, "pod=p1", "container=app")...)
	k.lacking.Store("ann get intercepts/environment", true)
	_, err := l.environment(t, ic)
	assert.Equal(t, codes.PermissionDenied, status.Code(err), "it is looked up for each")
	assert.ErrorContains(t, err, `user "ann" cannot get resource "intercepts/environment"`)
	m.logs(t, append(who, `msg="environment withheld"`)...)
}
