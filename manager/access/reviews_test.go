// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authzv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/types"
)

// asked are Reviews at an API server that allows everything, unless denies or fails says otherwise.
type asked struct {
	*Reviews
	metrics *prometheus.Registry
	clock   time.Time
	count   int
	denies  bool
	fails   error
	groups  []string
}

func newAsked() *asked {
	a := &asked{clock: time.Now(), metrics: prometheus.NewRegistry()}
	a.Reviews = NewReviews(func(_ context.Context, r *authzv1.SubjectAccessReview) error {
		a.count++
		a.groups = r.Spec.Groups
		r.Status.Allowed = !a.denies
		return a.fails
	}, ReviewEvery, func() time.Time { return a.clock }, slog.New(slog.DiscardHandler), a.metrics)
	return a
}

// round asks what is due.
func (a *asked) round(t *testing.T) int {
	before := a.count
	for _, one := range a.due() {
		a.again(t.Context(), one)
	}
	return a.count - before
}

var question = May("ann", []string{"developers"}, "shop", "get", "wiretap")

func TestARightIsLookedAtForAsLongAsItMatters(t *testing.T) {
	a := newAsked()
	assert.Equal(t, []Answer{{}}, a.Follow("one", question))
	assert.Equal(t, []Answer{{}}, a.Follow("two", question))
	assert.Equal(t, 1, a.round(t), "one question, however many it matters to")
	assert.Equal(t, []string{"developers"}, a.groups)
	assert.ElementsMatch(t, []types.UID{"one", "two"}, a.Changes().Take())
	assert.Equal(t, []Answer{{Known: true, Allowed: true}}, a.Follow("one", question))
	assert.Zero(t, a.round(t))

	a.clock = a.clock.Add(ReviewEvery)
	assert.Equal(t, 1, a.round(t))
	assert.Empty(t, a.Changes().Take(), "the same answer is no news")
	a.denies, a.clock = true, a.clock.Add(ReviewEvery)
	a.round(t)
	assert.ElementsMatch(t, []types.UID{"one", "two"}, a.Changes().Take())
	assert.Equal(t, []Answer{{Known: true}}, a.Follow("one", question))

	a.Follow("one", May("ann", nil, "shop", "get", "wiretap"))
	assert.Len(t, a.known, 2, "without her groups it is another question")
	a.Follow("one")
	a.Follow("two")
	assert.Empty(t, a.known, "it matters to nobody any more")
	assert.Empty(t, a.follow)
	a.clock = a.clock.Add(time.Hour)
	assert.Zero(t, a.round(t))
}

func TestWhileTheAPIServerDoesNotAnswerItsLastWordHolds(t *testing.T) {
	a := newAsked()
	a.Follow("one", question)
	a.fails = errors.New("busy")
	a.round(t)
	assert.Equal(t, []Answer{{}}, a.Follow("one", question), "it has said nothing")
	assert.Zero(t, a.round(t), "it rests")
	a.fails, a.clock = nil, a.clock.Add(reviewAgain)
	a.round(t)
	a.fails, a.clock = errors.New("busy"), a.clock.Add(ReviewEvery)
	a.round(t)
	assert.Equal(t, []Answer{{Known: true, Allowed: true}}, a.Follow("one", question))
	a.fails, a.denies, a.clock = nil, true, a.clock.Add(reviewAgain)
	a.round(t)
	assert.Equal(t, []Answer{{Known: true}}, a.Follow("one", question))
	families, err := a.metrics.Gather()
	require.NoError(t, err)
	counted := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		counted[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	assert.Equal(t, map[string]float64{"allowed": 1, "denied": 1, "failed": 2}, counted)
}

func TestReviewsAreAskedByThemselves(t *testing.T) {
	var denies atomic.Bool
	r := NewReviews(func(_ context.Context, r *authzv1.SubjectAccessReview) error {
		r.Status.Allowed = !denies.Load()
		return nil
	}, 20*time.Millisecond, time.Now, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	says := func(want Answer) {
		t.Helper()
		require.Eventually(t, func() bool { return r.Follow("one", question)[0] == want }, 10*time.Second,
			time.Millisecond)
	}
	says(Answer{Known: true, Allowed: true})
	denies.Store(true)
	says(Answer{Known: true})
	cancel()
	<-ended
}
