// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"slices"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/unanswered"
)

// Unanswered is the record of the requests that matched and that this laptop did not answer, for
// one reason.
type Unanswered struct {
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
	Last    string `json:"last,omitempty"`
	Message string `json:"message"`
	Advice  string `json:"advice"`
}

// miss is why, how often and when last a laptop did not answer.
type miss struct {
	reason unanswered.Reason
	count  uint64
	last   int64 // seconds since 1970; 0: not known
}

// misses returns those of an intercept, the newest first. The Intercept has counts that are a few
// seconds old, and the traffic manager, if it was asked, the present ones.
func misses(i *daemonpb.InterceptInfo, told *daemonpb.TrafficInfo) []miss {
	var all []miss
	for _, u := range i.GetUnanswered() {
		all = append(all, miss{unanswered.Reason(u.GetReason()), u.GetCount(), u.GetLast()})
	}
	for _, u := range told.GetUnanswered() {
		r := unanswered.Of(u.GetReason())
		at := slices.IndexFunc(all, func(m miss) bool { return m.reason == r })
		if at < 0 {
			at = len(all)
			all = append(all, miss{reason: r})
		}
		all[at].count = max(all[at].count, u.GetCount())
	}
	return all
}

func unansweredRecords(all []miss) []Unanswered {
	var records []Unanswered
	for _, m := range all {
		r := Unanswered{Reason: string(m.reason), Count: m.count, Message: m.reason.What(),
			Advice: m.reason.Advice()}
		if m.last != 0 {
			r.Last = time.Unix(m.last, 0).UTC().Format(time.RFC3339)
		}
		records = append(records, r)
	}
	return records
}

// unansweredLine sums up all reasons.
func unansweredLine(all []miss, now time.Time, mechanism string) string {
	if len(all) == 0 {
		return ""
	}
	sum := miss{last: all[0].last}
	for _, m := range all {
		sum.count += m.count
	}
	line := sum.often(now, mechanism) + ": " + all[0].reason.What()
	switch more := len(all) - 1; {
	case more == 1:
		line += "; for another reason, too"
	case more > 1:
		line += fmt.Sprintf("; for %d other reasons, too", more)
	}
	return line + reason.Dash + "`sidestep status` says what to do"
}

// often returns how many there were, and how long ago the last one was.
func (m miss) often(now time.Time, mechanism string) string {
	text := counted(m.count, mechanism)
	if m.last != 0 {
		text += ", the last " + ago(now.Sub(time.Unix(m.last, 0)))
	}
	return text
}

// counted returns a number of requests or, if whole connections are taken, of connections.
func counted(n uint64, mechanism string) string {
	what := "connection"
	if mechanism == "http" {
		what = "request"
	}
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// ago formats how long ago something was. The clocks of laptop and cluster may differ.
func ago(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// answerLines returns what this laptop answered, and for each reason what it did not and what to
// do.
func (t StatusText) answerLines(i *daemonpb.InterceptInfo) []string {
	told := toldOf(t.Told.GetTraffic(), i.GetId())
	var lines []string
	if told != nil && told.Answered != nil {
		lines = append(lines, "  answered here: "+counted(told.GetAnswered(), i.GetMechanism()))
	}
	for _, m := range misses(i, told) {
		lines = append(lines, fmt.Sprintf("  %s: %s: %s", t.Paint.Odd("not answered here"),
			m.often(t.Now, i.GetMechanism()), m.reason.What()), "    "+m.reason.Advice())
	}
	return lines
}

// toldOf returns what the traffic manager reported about an intercept, nil if nothing.
func toldOf(all []*daemonpb.TrafficInfo, id string) *daemonpb.TrafficInfo {
	for _, t := range all {
		if t.GetInterceptId() == id {
			return t
		}
	}
	return nil
}

// trafficOf returns what was counted for an intercept, nil if nothing.
func trafficOf(all []*daemonpb.TrafficInfo, id string) *agentpb.Traffic {
	return toldOf(all, id).GetTraffic()
}

// copiesOf returns what was counted for a wiretap, nil if nothing.
func copiesOf(all []*daemonpb.TrafficInfo, id string) *agentpb.Copies {
	return toldOf(all, id).GetCopies()
}
