// SPDX-License-Identifier: Apache-2.0

package match

import (
	"strconv"
	"strings"
)

// Conditions are the lines printed under "HTTP requests that match all of:"; none when every
// request matches.
func (r Rule) Conditions() []string {
	var lines []string
	for _, h := range r.headers {
		lines = append(lines, "header("+quote(h.name)+") "+h.operator())
	}
	switch r.path.kind {
	case pathEqual:
		lines = append(lines, "path-equal("+quote(r.path.text)+")")
	case pathPrefix:
		lines = append(lines, "path-prefix("+quote(r.path.text)+")")
	case pathRegex:
		lines = append(lines, "path-regex("+quote(r.path.text)+")")
	}
	return lines
}

// operator prints exact values as regular expressions too, the layout that people and their scripts
// know, as long as the expression means the same.
func (h *header) operator() string {
	if h.regex == nil && strings.ContainsAny(h.text, metacharacters) {
		return "== " + quote(h.text)
	}
	return "~= regexp(" + quote(h.text) + ")"
}

// String describes the rule in one line.
func (r Rule) String() string {
	if r.all() {
		return "all HTTP requests"
	}
	return "HTTP requests that match " + strings.Join(r.Conditions(), " and ")
}

// CurlHeaders are the exact header conditions as "name: value", for curl -H.
func (r Rule) CurlHeaders() []string {
	var lines []string
	for _, h := range r.headers {
		if h.regex == nil {
			lines = append(lines, h.name+": "+h.text)
		}
	}
	return lines
}

// quote leaves backslashes alone, so that an expression can be read as it was written, unless
// something in it would break the line.
func quote(s string) string {
	for _, c := range s {
		if c == '"' || !strconv.IsPrint(c) {
			return strconv.Quote(s)
		}
	}
	return `"` + s + `"`
}
