// SPDX-License-Identifier: Apache-2.0

package access

import "time"

// Why an Intercept is refused, as reasons of its condition Resolved.
const (
	// NotProven: the API server does not vouch for whose the Intercept is.
	NotProven = "NotProven"
	// Forbidden: its user has no right, or no longer, to what it asks for.
	Forbidden = "Forbidden"
)

// Judgement says what an Intercept may have of what it asks for. The zero value gives all of it.
type Judgement struct {
	// Reason is why it may have nothing; empty: it may have something. Message says it in a sentence,
	// and Advice what to do.
	Reason, Message, Advice string
	// NoToPod and NoEnvironment leave these out, and Note says why.
	NoToPod, NoEnvironment bool
	Note                   string
	// Again is after how long to judge again although nothing may have been heard; 0: never.
	Again time.Duration
}

// Refused reports whether the Intercept may have nothing.
func (j Judgement) Refused() bool { return j.Reason != "" }
