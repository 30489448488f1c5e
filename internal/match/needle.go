// SPDX-License-Identifier: Apache-2.0

package match

import (
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// Needle is what the head of every request that a rule matches holds, for those who search bytes
// before anybody parses them. Finding it does not mean that the request matches.
type Needle struct {
	// Header is the name, in lower case, of a field that is there in a line of its own. Empty: see
	// Path.
	Header string
	// Value is what the field's value, without the whitespace around it, begins with.
	Value string
	// Whole says that Value is all of it.
	Whole bool
	// Path is part of the request line. Without it and Header every request may match.
	Path string
}

// Needle chooses the condition of the rule that is likely to be found in the fewest other requests.
func (r Rule) Needle() Needle {
	var best Needle
	for _, h := range r.headers {
		n := Needle{Header: h.name, Value: h.text, Whole: true}
		if h.regex != nil {
			prefix, whole := h.needle()
			n.Value, n.Whole = prefix, whole
		}
		if best.Header == "" || n.rarer(best) {
			best = n
		}
	}
	if best.Header != "" {
		return best
	}
	switch r.path.kind {
	case pathEqual, pathPrefix:
		best.Path = r.path.text
	case pathRegex:
		best.Path, _ = certainPrefix(r.path.text)
	}
	return best
}

func (n Needle) rarer(other Needle) bool {
	if n.Whole != other.Whole {
		return n.Whole
	}
	return len(n.Header)+2*len(n.Value) > len(other.Header)+2*len(other.Value)
}

func (h *header) needle() (prefix string, whole bool) {
	prefix, whole = certainPrefix(h.text)
	// Values are compared without whitespace around them, so what begins or ends with it is left to
	// the one who parses.
	if trimmed := strings.TrimRight(prefix, " \t"); trimmed != prefix {
		return trimmed, false
	}
	if strings.TrimLeft(prefix, " \t") != prefix {
		return "", false
	}
	return prefix, whole
}

// certainPrefix is what every whole match of an expression begins with, byte for byte, and whether
// there is no more to it.
func certainPrefix(expr string) (string, bool) {
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return "", false
	}
	parts := []*syntax.Regexp{tree.Simplify()}
	if parts[0].Op == syntax.OpConcat {
		parts = parts[0].Sub
	}
	var prefix strings.Builder
	for _, part := range parts {
		switch {
		case part.Op == syntax.OpBeginText:
		case part.Op == syntax.OpEmptyMatch:
		case part.Op == syntax.OpLiteral && part.Flags&syntax.FoldCase == 0:
			for _, r := range part.Rune {
				if r == utf8.RuneError { // it also matches bytes that are not UTF-8
					return prefix.String(), false
				}
				prefix.WriteRune(r)
			}
		default:
			return prefix.String(), false
		}
	}
	return prefix.String(), true
}
