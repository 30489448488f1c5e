// SPDX-License-Identifier: Apache-2.0

package match

import (
	"slices"
	"strings"
)

// Overlaps reports whether one of the rules would take the other's requests, so that both cannot be
// held at once: the header conditions of one are all implied by those of the other, and some path
// fulfils both.
//
// The same condition implies itself, and an exact value implies each regex that it matches. Rules
// that want different values of one header therefore never overlap, and neither do rules with
// conditions on different headers: a request that fulfils both would have to be made for two
// developers on purpose. Regexes that are written differently count as different values, as
// personal intercepts by regex do ("alice.*", "bob.*"); whether two expressions have a common match
// is not computed. A rule without conditions overlaps with every rule.
func (r Rule) Overlaps(other Rule) bool {
	return r.path.overlaps(other.path) &&
		(implied(r.headers, other.headers) || implied(other.headers, r.headers))
}

// implied reports whether a request that fulfils all of given also fulfils all of wanted. Where that
// takes too long to find out, it is assumed: of two rules in doubt one has to wait.
func implied(wanted, given []header) bool {
	effort := maxOverlapEffort
	for _, w := range wanted {
		if !slices.ContainsFunc(given, func(g header) bool { return w.impliedBy(g, &effort) }) {
			return false
		}
	}
	return true
}

func (h *header) impliedBy(given header, effort *int) bool {
	if h.name != given.name {
		return false
	}
	switch {
	case h.regex == nil:
		return given.regex == nil && h.text == given.text
	case given.regex == nil:
		return h.regex.mayMatch(given.text, effort)
	}
	return h.text == given.text
}

// overlaps is exact, except that two regexes, or a regex and a prefix, are told apart by what they
// literally begin with only.
func (p path) overlaps(q path) bool {
	if p.kind > q.kind { // so that p is the simpler one
		p, q = q, p
	}
	effort := maxOverlapEffort
	switch {
	case p.kind == pathAny:
		return true
	case p.kind == pathEqual && q.kind == pathRegex:
		return q.regex.mayMatch(p.text, &effort)
	case p.kind == pathEqual:
		return q.match([]byte(p.text), &effort)
	case q.kind == pathPrefix:
		return compatible(p.text, q.text)
	case p.kind == pathPrefix && q.regex.literal:
		return strings.HasPrefix(q.regex.prefix, p.text)
	case p.kind == pathPrefix:
		return compatible(p.text, q.regex.prefix)
	case p.regex.literal:
		return q.regex.mayMatch(p.regex.prefix, &effort)
	case q.regex.literal:
		return p.regex.mayMatch(q.regex.prefix, &effort)
	}
	return compatible(p.regex.prefix, q.regex.prefix)
}

// compatible reports whether some text begins with both.
func compatible(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }
