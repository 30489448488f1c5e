// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/tests/lab"
)

// testIdentity lets a colleague with every right to Intercepts try what only their user may do, and
// then takes these rights while they are in use.
func testIdentity(t *testing.T, s *scene) {
	if !s.Local() {
		t.Skip("on a cluster that was given all developers are one user")
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := s.Kubectl(t.Context(), args...)
		require.NoError(t, err)
		return out
	}
	kubectl("-n", "sidestep", "create", "rolebinding", "e2e-identity", "--role=sidestep-user",
		"--group=strangers")
	kubectl("-n", lab.Namespace, "create", "rolebinding", "e2e-identity", "--clusterrole=sidestep-user",
		"--group=strangers")
	stranger, err := s.Stranger(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, _ = stranger.Sidestep(ctx, "quit", "-s")
		for _, namespace := range []string{"sidestep", lab.Namespace} {
			_, _ = s.Kubectl(ctx, "-n", namespace, "delete", "rolebinding", "e2e-identity", "--ignore-not-found")
		}
	})
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	var held v1alpha1.InterceptList
	require.NoError(t, json.Unmarshal([]byte(kubectl("-n", lab.Namespace, "get", "intercepts", "-o", "json")),
		&held))
	require.Len(t, held.Items, 1)
	anns := held.Items[0]
	logins := kubectl("-n", "sidestep", "get", "logins", "-o", "jsonpath={.items[*].spec.user}")
	require.Contains(t, strings.Fields(logins), anns.Spec.Client.User)

	refused := func(object any, says string) {
		t.Helper()
		data, err := json.Marshal(object)
		require.NoError(t, err)
		cmd := stranger.Kubectl(t.Context(), "create", "-f", "-")
		cmd.Stdin = strings.NewReader(string(data))
		_, err = lab.Output(cmd)
		assert.ErrorContains(t, err, says)
	}
	forged := v1alpha1.Intercept{TypeMeta: anns.TypeMeta, Spec: *anns.Spec.DeepCopy()}
	another := "somebody"
	forged.Spec.HTTP.Headers[0].Value = &another // else it overlaps with ann's
	forged.Namespace, forged.Name = lab.Namespace, "forged"
	refused(forged, "can neither create it for them nor change it")
	login := v1alpha1.Login{Spec: v1alpha1.LoginSpec{User: anns.Spec.Client.User,
		KeyHash: anns.Spec.Client.KeyHash, Expires: anns.CreationTimestamp}}
	login.APIVersion, login.Kind = v1alpha1.GroupVersion.String(), "Login"
	login.Namespace, login.Name = "sidestep", "forged"
	refused(login, "cannot log in as user")
	_, err = lab.Output(stranger.Kubectl(t.Context(), "-n", lab.Namespace, "patch", "intercept", anns.Name,
		"--type=merge", "-p", `{"spec":{"port":"9001"}}`))
	assert.ErrorContains(t, err, "can neither create it for them nor change it")

	intercept(t, stranger, "orders", "--port", "9000", "--http-header", "x-user=stranger")
	kubectl("-n", lab.Namespace, "delete", "rolebinding", "e2e-identity")
	require.NoError(t, lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) error {
		states, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "-o",
			`jsonpath={range .items[*]}{.status.state}: {.status.message}{"\n"}{end}`)
		if err == nil && !strings.Contains(states, `INVALID: user "stranger" cannot create resource "intercepts"`) {
			err = errors.New("the right is still of use: " + states)
		}
		return err
	}))
	answer, err := s.Call(t.Context(), "http://orders", "x-user: stranger")
	require.NoError(t, err)
	assert.Equal(t, "orders", answer.Service, "the pods answer again")
	kubectl("-n", lab.Namespace, "delete", "intercepts", "-l", "sidestep.dev/session!="+anns.Spec.Client.Session)
}
