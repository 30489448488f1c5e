// SPDX-License-Identifier: Apache-2.0

package takeover

import "sidestep.dev/sidestep/internal/match"

// What becomes of older connections: Rule.Existing.
const (
	Auto = "auto" // of a rule for requests: those with a matching request end; else as idle
	Idle = "idle" // those that are idle are ended
	All  = "all"  // all are ended
	None = "none" // nothing
)

// Rule is what an intercept wants of the older connections of a port.
type Rule struct {
	Intercept string // UID
	TCP       bool   // takes whole connections
	HTTP      match.Rule
	Existing  string
}

// watches reports whether the rule wants single requests.
func (r *Rule) watches() bool { return !r.TCP && (r.Existing == Auto || r.Existing == "") }

// ends returns which connections the rule wants to be ended, if any.
func (r *Rule) ends() string {
	switch {
	case r.Existing == Idle, r.Existing == All:
		return r.Existing
	case r.TCP && (r.Existing == Auto || r.Existing == ""):
		return Idle
	}
	return None
}

// needles returns what is looked for in requests.
func needles(rules []Rule) (all []match.Needle) {
	for i := range rules {
		if rules[i].watches() {
			all = append(all, rules[i].HTTP.Needle())
		}
	}
	return all
}
