// SPDX-License-Identifier: Apache-2.0

package match

import "strings"

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
		best.Path = r.path.regex.prefix
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
	prefix, whole = h.regex.prefix, h.regex.literal
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
