// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authzv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/manager/changes"
)

const (
	// ReviewEvery is how long an answer is taken to hold. A right that is withdrawn is in use for that
	// long, and as long as the API server's own caches hold.
	ReviewEvery = 20 * time.Second
	// reviewAgain is the rest after a question that the API server did not answer.
	reviewAgain = 5 * time.Second
	// reviewPatience bounds one question, and reviewsAtOnce how many are under way.
	reviewPatience, reviewsAtOnce = 10 * time.Second, 8
)

// Question is what the API server is asked: whether a user may do something in a namespace.
type Question = authzv1.SubjectAccessReviewSpec

// Answer is what the API server said last.
type Answer struct {
	Known   bool // it has said something
	Allowed bool
}

// Reviews ask the API server what users may do, and ask again for as long as it matters. They are
// safe for concurrent use.
type Reviews struct {
	ask     func(ctx context.Context, review *authzv1.SubjectAccessReview) error
	every   time.Duration
	now     func() time.Time
	log     *slog.Logger
	changes *changes.Set[types.UID]
	poke    chan struct{}
	count   *prometheus.CounterVec

	mu      sync.Mutex
	known   map[string]*review
	follow  map[types.UID][]string
	failing bool
}

// review is one question and its answer.
type review struct {
	question Question
	answer   Answer
	due      time.Time // when it is asked again
	asking   bool
	matters  map[types.UID]struct{} // to these Intercepts
}

// NewReviews makes Reviews and registers their metric. ask creates a review at the API server, and
// every is the time between questions about the same.
func NewReviews(ask func(context.Context, *authzv1.SubjectAccessReview) error, every time.Duration,
	now func() time.Time, log *slog.Logger, metrics prometheus.Registerer) *Reviews {
	r := &Reviews{
		ask: ask, every: every, now: now, log: log, changes: changes.NewSet[types.UID](),
		poke: make(chan struct{}, 1), known: map[string]*review{}, follow: map[types.UID][]string{},
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestep_manager_access_reviews_total",
			Help: "Questions to the API server whether users still have the rights that are in use.",
		}, []string{"result"}),
	}
	metrics.MustRegister(r.count)
	return r
}

// Changes returns the Intercepts for which an answer has changed.
func (r *Reviews) Changes() *changes.Set[types.UID] { return r.changes }

// Follow says which questions matter to an Intercept from now on, and returns what is known. It does
// not wait for the API server.
func (r *Reviews) Follow(uid types.UID, questions ...Question) []Answer {
	keys := make([]string, len(questions))
	for i, q := range questions {
		keys[i] = keyOf(q)
	}
	answers := make([]Answer, len(questions))
	news := false
	r.mu.Lock()
	for i, k := range keys {
		one := r.known[k]
		if one == nil {
			one = &review{question: questions[i], matters: map[types.UID]struct{}{}}
			r.known[k], news = one, true
		}
		one.matters[uid] = struct{}{}
		answers[i] = one.answer
	}
	for _, k := range r.follow[uid] {
		if !slices.Contains(keys, k) {
			r.release(uid, k)
		}
	}
	if r.follow[uid] = keys; len(keys) == 0 {
		delete(r.follow, uid)
	}
	r.mu.Unlock()
	if news {
		select {
		case r.poke <- struct{}{}:
		default:
		}
	}
	return answers
}

// release is called with mu held.
func (r *Reviews) release(uid types.UID, key string) {
	if one := r.known[key]; one != nil {
		if delete(one.matters, uid); len(one.matters) == 0 {
			delete(r.known, key)
		}
	}
}

// Now asks one question and waits for the answer.
func (r *Reviews) Now(ctx context.Context, q Question) (bool, error) {
	answer := &authzv1.SubjectAccessReview{Spec: q}
	if err := r.ask(ctx, answer); err != nil {
		r.count.WithLabelValues("failed").Inc()
		return false, fmt.Errorf("ask the API server what user %q may do: %w", q.User, err)
	}
	if !answer.Status.Allowed {
		r.count.WithLabelValues("denied").Inc()
		return false, nil
	}
	r.count.WithLabelValues("allowed").Inc()
	return true, nil
}

// Run asks what is due until ctx is done.
func (r *Reviews) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, reviewsAtOnce)
	ticker := time.NewTicker(min(time.Second, r.every/2))
	defer ticker.Stop()
	for {
		for _, one := range r.due() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				r.again(ctx, one)
			})
		}
		select {
		case <-ticker.C:
		case <-r.poke:
		case <-ctx.Done():
			return
		}
	}
}

// due returns what is to be asked now. All of it is being asked from here on.
func (r *Reviews) due() []*review {
	now := r.now()
	var all []*review
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.known {
		if !one.asking && !now.Before(one.due) {
			one.asking = true
			all = append(all, one)
		}
	}
	return all
}

// again asks one question once more. Until the API server answers, what it said last holds.
func (r *Reviews) again(ctx context.Context, one *review) {
	asked := r.now()
	asking, cancel := context.WithTimeout(ctx, reviewPatience)
	defer cancel()
	allowed, err := r.Now(asking, one.question)
	r.mu.Lock()
	one.asking = false
	one.due = asked.Add(r.every)
	if err != nil {
		one.due = r.now().Add(reviewAgain)
	}
	next := Answer{Known: true, Allowed: allowed}
	var matters []types.UID
	if err == nil && one.answer != next {
		one.answer = next
		for uid := range one.matters {
			matters = append(matters, uid)
		}
	}
	turned := r.failing != (err != nil) && ctx.Err() == nil
	if turned {
		r.failing = err != nil
	}
	r.mu.Unlock()
	switch {
	case turned && err != nil:
		r.log.Error("rights are not looked at again", "error", err)
	case turned:
		r.log.Info("rights are looked at again")
	}
	r.changes.Add(matters...)
}

// keyOf tells questions apart.
func keyOf(q Question) string {
	data, _ := json.Marshal(q) // of strings alone
	return string(data)
}

// May is the question whether a user may do something with intercepts, or a subresource of them.
func May(user string, groups []string, namespace, verb, subresource string) Question {
	return Question{User: user, Groups: groups, ResourceAttributes: &authzv1.ResourceAttributes{
		Namespace: namespace, Verb: verb, Group: "sidestep.dev", Resource: "intercepts",
		Subresource: subresource,
	}}
}
