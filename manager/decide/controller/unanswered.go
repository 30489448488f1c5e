// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/unanswered"
)

// unansweredLately is how long after the last request that the laptop did not answer the condition
// says so.
const unansweredLately = time.Minute

// tally is what is known of the requests that an intercept's laptop did not answer.
type tally struct {
	list []v1alpha1.Unanswered // the newest first
	seen map[unanswered.Reason]uint64
	// told is the reason in the condition. It stays as long as it is true, so that two reasons that
	// alternate do not cause a write each time.
	told unanswered.Reason
}

// count takes the node agents' counts, and queues the intercept for when the condition may change.
func (c *Controller) count(e *entry) {
	now := time.Now()
	e.unanswered.take(c.cfg.Plan.Unanswered(e.uid), now)
	if len(e.unanswered.list) == 0 {
		return
	}
	if left := unansweredLately - now.Sub(e.unanswered.list[0].Last.Time); left > 0 {
		c.queue.AddAfter(key(e.intercept), left)
	}
}

// take compares the sums of all node agents with the earlier ones. A sum is smaller if node agents
// have restarted. The count in the status then stays.
func (t *tally) take(counted map[agentpb.Unanswered_Reason]uint64, now time.Time) {
	sums := map[unanswered.Reason]uint64{}
	for number, n := range counted {
		sums[unanswered.Of(number)] += n
	}
	if t.seen == nil {
		t.seen = map[unanswered.Reason]uint64{}
	}
	list := slices.Clone(t.list)
	for reason, n := range sums {
		i := slices.IndexFunc(list, func(u v1alpha1.Unanswered) bool { return u.Reason == string(reason) })
		if i < 0 {
			i = len(list)
			list = append(list, v1alpha1.Unanswered{Reason: string(reason)})
		}
		before, known := t.seen[reason]
		if !known { // a manager that has just started finds its predecessor's count
			before = uint64(list[i].Count)
		}
		if n > before {
			list[i].Last = metav1.Time{Time: now}.Rfc3339Copy()
		}
		list[i].Count = max(list[i].Count, int64(n))
		t.seen[reason] = n
	}
	slices.SortFunc(list, func(a, b v1alpha1.Unanswered) int {
		return cmp.Or(b.Last.Compare(a.Last.Time), cmp.Compare(a.Reason, b.Reason))
	})
	t.list = list
}

// condition reports whether the laptop answers what matches.
func (t *tally) condition(generation int64, now time.Time) metav1.Condition {
	lately := func(u v1alpha1.Unanswered) bool { return now.Sub(u.Last.Time) < unansweredLately }
	i := slices.IndexFunc(t.list, func(u v1alpha1.Unanswered) bool {
		return lately(u) && u.Reason == string(t.told)
	})
	if i < 0 {
		i = slices.IndexFunc(t.list, lately)
	}
	if i < 0 {
		t.told = ""
		return metav1.Condition{Type: v1alpha1.ConditionAnswered, Status: metav1.ConditionTrue,
			Reason: "NoneUnanswered", ObservedGeneration: generation}
	}
	t.told = unanswered.Reason(t.list[i].Reason)
	return metav1.Condition{Type: v1alpha1.ConditionAnswered, Status: metav1.ConditionFalse,
		Reason: t.list[i].Reason, ObservedGeneration: generation,
		Message: "requests that match were not answered by the laptop: " + t.told.Text()}
}

// sameButCounts reports whether two statuses differ in no more than how often, and when last, the
// laptop did not answer for reasons that both have.
func sameButCounts(a, b *v1alpha1.InterceptStatus) bool {
	reasons := func(st *v1alpha1.InterceptStatus) []string {
		var all []string
		for _, u := range st.Unanswered {
			all = append(all, u.Reason)
		}
		slices.Sort(all)
		return all
	}
	if !slices.Equal(reasons(a), reasons(b)) {
		return false
	}
	x, y := *a, *b
	x.Unanswered, y.Unanswered = nil, nil
	return apiequality.Semantic.DeepEqual(x, y)
}
