// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
)

// user returns a client that acts for a user with rules in a namespace.
func user(t *testing.T, admin *rest.Config, name, namespace string,
	rules ...rbacv1.PolicyRule) client.Client {
	t.Helper()
	c, err := client.New(admin, client.Options{Scheme: withRBAC(t)})
	require.NoError(t, err)
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	require.NoError(t, c.Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}))
	require.NoError(t, c.Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: name}},
	}))
	config := rest.CopyConfig(admin)
	config.Impersonate = rest.ImpersonationConfig{UserName: name,
		Groups: []string{"developers", "system:authenticated"}}
	c, err = client.New(config, client.Options{Scheme: Scheme()})
	require.NoError(t, err)
	return c
}

var logins = rbacv1.PolicyRule{APIGroups: []string{"sidestep.dev"}, Resources: []string{"logins"},
	Verbs: []string{"create", "get", "delete"}}

// login is one of a user for the session of a laptop.
func login(user, laptop string, expires time.Duration) *v1alpha1.Login {
	sum := sha256.Sum256(sessionKey(laptop))
	return &v1alpha1.Login{
		ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", GenerateName: "laptop-"},
		Spec: v1alpha1.LoginSpec{User: user, Groups: []string{"developers"}, KeyHash: hex.EncodeToString(sum[:]),
			Expires: metav1.NewTime(time.Now().Add(expires))},
	}
}

// refused opens a session and returns how it ends.
func (r *running) refused(t *testing.T, name string) error {
	t.Helper()
	conn := r.dial(t, "sidestep-session-key", hex.EncodeToString(sessionKey(name)))
	s, err := clientpb.NewClientsClient(conn).Session(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{
			Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11", Holder: name + "@laptop", Protocol: 1,
		}}}))
	_, err = s.Recv()
	return err
}

// logsIn tries sessions with and without Logins, at a manager that admits no older laptops. c has the
// manager's rights.
func logsIn(t *testing.T, k *kube, admin *rest.Config, c client.WithWatch) {
	k.create(t, policy(t, plain(t, "identity.yaml")[2:])...)
	ann, eve := user(t, admin, "ann", "sidestep", logins), user(t, admin, "eve", "sidestep", logins)
	m := startWith(t, c, func(o *Options) { o.OlderLaptops = false })
	m.ready(t)
	require.Eventually(t, func() bool { // the policy comes into force after a moment
		forged := login("ann", "other", time.Hour)
		err := eve.Create(t.Context(), forged)
		if err == nil {
			require.NoError(t, k.Delete(t.Context(), forged))
		}
		return apierrors.IsForbidden(err)
	}, time.Minute, 100*time.Millisecond)
	require.Eventually(t, func() bool { // and Logins older than it prove nothing
		mine := login("ann", "ann", time.Hour)
		require.NoError(t, ann.Create(t.Context(), mine))
		return m.refused(t, "ann") == nil
	}, time.Minute, time.Second)
	err := m.refused(t, "eve")
	assert.Equal(t, codes.PermissionDenied, status.Code(err))
	assert.Equal(t, reason.NotProven, reason.Of(err))

	l := m.laptop(t, "ann", 0)
	past := login("eve", "eve", -time.Second)
	require.NoError(t, eve.Create(t.Context(), past))
	require.Eventually(t, func() bool {
		return apierrors.IsNotFound(k.Get(t.Context(), client.ObjectKeyFromObject(past), past))
	}, 30*time.Second, often, "the manager deletes what has expired")
	require.NoError(t, k.DeleteAllOf(t.Context(), &v1alpha1.Login{}, client.InNamespace("sidestep")))
	select {
	case err := <-l.ended:
		assert.Equal(t, codes.PermissionDenied, status.Code(err), "without its Login a session ends")
	case <-time.After(30 * time.Second):
		t.Error("the session goes on without its Login")
	}
}
