// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/access"
)

// TestANewLoginIsNoWayAroundAnAnswer creates Logins whose groups differ, so that each is a question
// that the API server has not answered yet.
func TestANewLoginIsNoWayAroundAnAnswer(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	ctx, cancel := context.WithCancel(t.Context())
	refuses := func(_ context.Context, r *authzv1.SubjectAccessReview) error {
		if r.Spec.Groups[0] != "first" {
			<-ctx.Done() // no answer
			return ctx.Err()
		}
		r.Status.Allowed = r.Spec.ResourceAttributes.Subresource == ""
		return nil
	}
	log := slog.New(slog.NewTextHandler(w.logged, nil))
	reviews := access.NewReviews(refuses, time.Hour, time.Now, log, prometheus.NewRegistry())
	var wg sync.WaitGroup
	wg.Go(func() { reviews.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	h := NewHolders(HoldersConfig{Logins: w.Logins, Guard: w.cfg.Guard, Reviews: reviews, Grace: time.Hour,
		Log: log, Now: w.now})
	ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "1"},
		Spec: v1alpha1.InterceptSpec{Wiretap: true, ToPod: []int32{5432},
			Client: v1alpha1.ClientReference{User: "ann", KeyHash: "k1"}}}

	first := w.login("k1", "ann", 0, time.Hour, "first")
	w.eventually(func() bool { return w.Proven("k1") }, "the first Login")
	w.eventually(func() bool { return h.Judge(ic, "k1").Reason == access.Forbidden }, "a right is missing")
	require.NoError(t, w.Delete(t.Context(), first))
	w.eventually(func() bool { return h.Judge(ic, "k1").Reason == access.NotProven }, "the Login is gone")
	w.login("k1", "ann", 0, time.Hour, "second")
	w.eventually(func() bool { return w.Proven("k1") }, "the second Login")
	assert.Equal(t, access.Forbidden, h.Judge(ic, "k1").Reason, "what was answered last holds")

	h.Forget(ic.UID)
	assert.False(t, h.Judge(ic, "k1").Refused(), "of another Intercept nothing is known, but that it was admitted")
}
