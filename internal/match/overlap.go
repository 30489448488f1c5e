// SPDX-License-Identifier: Apache-2.0

package match

import (
	"regexp"
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
	if !r.path.overlaps(other.path) {
		return false
	}
	return implied(r.headers, other.headers) || implied(other.headers, r.headers)
}

// implied reports whether a request that fulfils all of given also fulfils all of wanted.
func implied(wanted, given []header) bool {
	for _, w := range wanted {
		if !slices.ContainsFunc(given, func(g header) bool { return w.impliedBy(g) }) {
			return false
		}
	}
	return true
}

func (h *header) impliedBy(given header) bool {
	if h.name != given.name {
		return false
	}
	switch {
	case h.regex == nil:
		return given.regex == nil && h.text == given.text
	case given.regex == nil:
		return h.regex.MatchString(given.text)
	}
	return h.text == given.text
}

// overlaps is exact, except that two regexes, or a regex and a prefix, are told apart by what they
// literally begin with only.
func (p path) overlaps(q path) bool {
	if p.kind > q.kind { // so that p is the simpler one
		p, q = q, p
	}
	switch {
	case p.kind == pathAny:
		return true
	case p.kind == pathEqual:
		return q.match([]byte(p.text))
	case q.kind == pathPrefix:
		return compatible(p.text, q.text)
	case p.kind == pathPrefix:
		literal, whole := literalPrefix(q.text)
		if whole {
			return strings.HasPrefix(literal, p.text)
		}
		return compatible(p.text, literal)
	}
	a, wholeA := literalPrefix(p.text)
	b, wholeB := literalPrefix(q.text)
	switch {
	case wholeA:
		return q.regex.MatchString(a)
	case wholeB:
		return p.regex.MatchString(b)
	}
	return compatible(a, b)
}

// compatible reports whether some text begins with both.
func compatible(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

// literalPrefix is what every match of an anchored expression begins with, and whether that is all
// there is.
func literalPrefix(expr string) (string, bool) {
	re, err := regexp.Compile(strings.TrimPrefix(expr, "^"))
	if err != nil { // "^*" is an expression, "*" is not
		return "", false
	}
	return re.LiteralPrefix()
}
