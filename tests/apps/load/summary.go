// SPDX-License-Identifier: Apache-2.0

package load

import (
	"slices"
	"time"
)

// keptEvents is how many events of a kind a summary lists. All are counted.
const keptEvents = 20

// Summary is the outcome of a load.
type Summary struct {
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Requests int       `json:"requests"`
	// RPS is requests per second, failed ones too.
	RPS float64 `json:"rps"`

	MatchedTotal      int `json:"matched_total"`
	MatchedToLaptop   int `json:"matched_to_laptop"`
	MatchedFailed     int `json:"matched_failed"`
	UnmatchedTotal    int `json:"unmatched_total"`
	UnmatchedToLaptop int `json:"unmatched_to_laptop"`
	UnmatchedFailed   int `json:"unmatched_failed"`

	// Failures are requests without a good answer.
	Failures Events `json:"failures"`
	// Missed are matched requests that the app answered.
	Missed Events `json:"missed"`
	// Strayed are unmatched requests that the laptop answered.
	Strayed Events `json:"strayed"`

	// AnsweredBy counts the good answers by "service/pod" of the service that was asked.
	AnsweredBy map[string]int `json:"answered_by"`

	// Latencies of good answers.
	Matched   Latency `json:"latency_matched"`
	Unmatched Latency `json:"latency_unmatched"`

	durations [2][]time.Duration
}

// Events counts events and lists the first of them and the last.
type Events struct {
	Count int     `json:"count"`
	First []Event `json:"first,omitempty"`
	Last  *Event  `json:"last,omitempty"`
}

// Event is one request that went another way than it should.
type Event struct {
	// Time is when the request was started.
	Time    time.Time `json:"time"`
	Matched bool      `json:"matched"`
	// Error or AnsweredBy is set.
	Error      string `json:"error,omitempty"`
	AnsweredBy string `json:"answered_by,omitempty"`
}

// Latency is in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

func newSummary(started time.Time) *Summary {
	return &Summary{Started: started, AnsweredBy: map[string]int{}}
}

func (s *Summary) record(begin time.Time, matched bool, got reply, err error) {
	total, laptop, failed, class := &s.UnmatchedTotal, &s.UnmatchedToLaptop, &s.UnmatchedFailed, 0
	if matched {
		total, laptop, failed, class = &s.MatchedTotal, &s.MatchedToLaptop, &s.MatchedFailed, 1
	}
	*total++
	event := Event{Time: begin, Matched: matched}
	if err != nil {
		*failed++
		event.Error = err.Error()
		s.Failures.add(event)
		return
	}
	s.durations[class] = append(s.durations[class], time.Since(begin))
	event.AnsweredBy = got.service + "/" + got.pod
	s.AnsweredBy[event.AnsweredBy]++
	if got.laptop {
		*laptop++
	}
	switch {
	case matched && !got.laptop:
		s.Missed.add(event)
	case !matched && got.laptop:
		s.Strayed.add(event)
	}
}

func (e *Events) add(event Event) {
	e.Count++
	if len(e.First) < keptEvents {
		e.First = append(e.First, event)
	}
	if e.Last == nil || event.Time.After(e.Last.Time) {
		e.Last = &event
	}
}

func (e *Events) join(other Events) {
	e.Count += other.Count
	e.First = append(e.First, other.First...)
	slices.SortFunc(e.First, func(a, b Event) int { return a.Time.Compare(b.Time) })
	e.First = e.First[:min(len(e.First), keptEvents)]
	if other.Last != nil && (e.Last == nil || other.Last.Time.After(e.Last.Time)) {
		e.Last = other.Last
	}
}

// add joins what another worker did.
func (s *Summary) add(other *Summary) {
	s.MatchedTotal += other.MatchedTotal
	s.MatchedToLaptop += other.MatchedToLaptop
	s.MatchedFailed += other.MatchedFailed
	s.UnmatchedTotal += other.UnmatchedTotal
	s.UnmatchedToLaptop += other.UnmatchedToLaptop
	s.UnmatchedFailed += other.UnmatchedFailed
	s.Failures.join(other.Failures)
	s.Missed.join(other.Missed)
	s.Strayed.join(other.Strayed)
	for who, count := range other.AnsweredBy {
		s.AnsweredBy[who] += count
	}
	for class := range s.durations {
		s.durations[class] = append(s.durations[class], other.durations[class]...)
	}
}

func (s *Summary) finish(took time.Duration) {
	s.Seconds = took.Seconds()
	s.Requests = s.MatchedTotal + s.UnmatchedTotal
	if took > 0 {
		s.RPS = float64(s.Requests) / took.Seconds()
	}
	s.Unmatched, s.Matched = latency(s.durations[0]), latency(s.durations[1])
}

func latency(durations []time.Duration) Latency {
	slices.Sort(durations)
	return Latency{
		P50: quantile(durations, 0.50),
		P90: quantile(durations, 0.90),
		P99: quantile(durations, 0.99),
		Max: quantile(durations, 1),
	}
}
