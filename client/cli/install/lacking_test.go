// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authzv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

func rule(resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{"sidestep.dev"}, Resources: resources, Verbs: []string{"*"}}
}

// bindings are roles and bindings of an older installation.
func bindings() []runtime.Object {
	user := func(name string) rbacv1.Subject { return rbacv1.Subject{Kind: rbacv1.UserKind, Name: name} }
	bind := func(in, kind, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: role},
			RoleRef: rbacv1.RoleRef{Kind: kind, Name: role}, Subjects: subjects}
	}
	return []runtime.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: userRole},
			Rules: []rbacv1.PolicyRule{rule("intercepts"), rule("intercepts/topod"), rule("intercepts/wholeport")}},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "view"},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{"sidestep.dev"}, Resources: []string{"intercepts"},
				Verbs: []string{"get"}}}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ours"},
			Rules: []rbacv1.PolicyRule{rule("intercepts")}},
		bind("shop", "ClusterRole", userRole, user("ann"),
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: "ci", Name: "bot"}),
		bind("shop", "ClusterRole", "view", user("vic")),
		bind("shop", "Role", "ours", rbacv1.Subject{Kind: rbacv1.GroupKind, Name: "devs"}, user("stranger")),
		bind("bank", "Role", "ours", user("nobody")), // there is no such Role there
	}
}

// answers plays the API server's authorizer. Each entry is "who verb resource in".
func (f *fixture) answers(allowed ...string) {
	f.kube.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool,
		runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authzv1.SubjectAccessReview).DeepCopy()
		asks := review.Spec.ResourceAttributes
		resource := asks.Resource
		if asks.Subresource != "" {
			resource += "/" + asks.Subresource
		}
		for _, who := range append(review.Spec.Groups, review.Spec.User) {
			if slices.Contains(allowed, who+" "+asks.Verb+" "+resource+" "+asks.Namespace) {
				review.Status.Allowed = true
			}
		}
		return true, review, nil
	})
}

func TestAnUpgradeNamesThoseWhoLackWhatItAsksFor(t *testing.T) {
	f := newFixture(t)
	for _, o := range bindings() {
		require.NoError(t, f.kube.Tracker().Add(o))
	}
	const bot = "system:serviceaccount:ci:bot"
	f.answers("ann get configmaps sidestep", "ann create logins sidestep", "ann get intercepts/topod shop",
		"ann get intercepts/wholeport shop",
		bot+" get configmaps sidestep", bot+" get intercepts/topod shop", bot+" get intercepts/wholeport shop",
		"devs get configmaps sidestep", "devs create logins sidestep", "vic get configmaps sidestep")
	lines, err := f.lacking(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{
		`group "devs" lacks get on intercepts/topod, intercepts/wholeport in namespace shop ` +
			`(ClusterRole sidestep-user)`,
		`serviceaccount "ci/bot" lacks create on logins in namespace sidestep (Role sidestep-user)`,
	}, lines)

	var warned []string
	f.warnLacking(t.Context(), Settings{Warn: func(text string) { warned = append(warned, text) }})
	require.Len(t, warned, 3)
	assert.Contains(t, warned[0], "cannot use sidestep as before")
	assert.Equal(t, lines, warned[1:])
}

func TestAnUpgradeDoesNotFailForWantOfTheRightToAsk(t *testing.T) {
	f := newFixture(t)
	f.kube.PrependReactor("list", "clusterroles", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("you may not")
	})
	var warned []string
	f.warnLacking(t.Context(), Settings{Warn: func(text string) { warned = append(warned, text) }})
	assert.Equal(t, []string{"cannot find out who lacks rights that this version needs: " +
		"list ClusterRoles: you may not"}, warned)
}
