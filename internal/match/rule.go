// SPDX-License-Identifier: Apache-2.0

// Package match decides whether an HTTP request belongs to an intercept, and whether two intercepts
// would take each other's requests.
//
// A rule is a list of conditions that must all hold: on header fields, by exact value or by regular
// expression, and on the path. Field names are compared without regard to case (RFC 9110 §5.1);
// values byte for byte, without the optional whitespace around them (RFC 9110 §5.5). A field that a
// request carries several times matches by any of its lines; a line is never split at commas. The
// path is compared as it was sent, without its query: nothing is percent-decoded and no dot
// segments are removed, since what the app makes of them is not known here.
package match

import (
	"errors"
	"fmt"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// AutoHeader carries an intercept's own identity, "<session uuid>:<intercept name>"; libraries that
// propagate it exist.
const AutoHeader = "x-telepresence-intercept-id"

// Rule says which requests an intercept takes. It is immutable and safe for concurrent use. The
// zero Rule matches every request.
type Rule struct {
	headers []header
	path    path
}

// header is one condition on a header field: exactly text, or a whole match of regex when that is
// set.
type header struct {
	name  string // lower case
	text  string // the value, or the expression as it was written
	regex *expression
}

type pathKind int

const (
	pathAny pathKind = iota
	pathEqual
	pathPrefix
	pathRegex
)

type path struct {
	kind  pathKind
	text  string
	regex *expression
}

// FromSpec compiles the rule of an Intercept; nil is the rule that matches every request. Its
// errors name the field and the expression.
func FromSpec(spec *v1alpha1.HTTPMatch) (Rule, error) {
	var rule Rule
	if spec == nil {
		return rule, nil
	}
	if len(spec.Headers) > MaxHeaders {
		return Rule{}, fmt.Errorf("http.headers: %d conditions, and %d are allowed", len(spec.Headers), MaxHeaders)
	}
	for i, h := range spec.Headers {
		compiled, err := newHeader(h.Name, h.Value, h.Regex)
		if err != nil {
			return Rule{}, fmt.Errorf("http.headers[%d]: %w", i, err)
		}
		rule.headers = append(rule.headers, compiled)
	}
	if spec.Path != nil {
		compiled, err := newPath(spec.Path.Equal, spec.Path.Prefix, spec.Path.Regex)
		if err != nil {
			return Rule{}, fmt.Errorf("http.path: %w", err)
		}
		rule.path = compiled
	}
	if size := rule.Program(); size > MaxRuleProgram {
		return Rule{}, fmt.Errorf("http: the regular expressions compile to about %d instructions together, "+
			"and %d are allowed: use smaller repeat counts, or exact values", size, MaxRuleProgram)
	}
	return rule, nil
}

// FromProto compiles a rule that came over the wire; nil is the rule that matches every request.
func FromProto(m *agentpb.HTTPMatch) (Rule, error) {
	spec := &v1alpha1.HTTPMatch{}
	for _, h := range m.GetHeaders() {
		to := v1alpha1.HeaderMatch{Name: h.GetName()}
		switch c := h.GetMatch().(type) {
		case *agentpb.HeaderMatch_Value:
			to.Value = &c.Value
		case *agentpb.HeaderMatch_Regex:
			to.Regex = &c.Regex
		}
		spec.Headers = append(spec.Headers, to)
	}
	if p := m.GetPath(); p != nil {
		to := &v1alpha1.PathMatch{}
		switch c := p.GetMatch().(type) {
		case *agentpb.PathMatch_Equal:
			to.Equal = &c.Equal
		case *agentpb.PathMatch_Prefix:
			to.Prefix = &c.Prefix
		case *agentpb.PathMatch_Regex:
			to.Regex = &c.Regex
		}
		spec.Path = to
	}
	return FromSpec(spec)
}

// Proto is the rule as it travels; nil when it matches every request.
func (r Rule) Proto() *agentpb.HTTPMatch {
	if r.all() {
		return nil
	}
	m := &agentpb.HTTPMatch{}
	for _, h := range r.headers {
		to := &agentpb.HeaderMatch{Name: h.name}
		if h.regex != nil {
			to.Match = &agentpb.HeaderMatch_Regex{Regex: h.text}
		} else {
			to.Match = &agentpb.HeaderMatch_Value{Value: h.text}
		}
		m.Headers = append(m.Headers, to)
	}
	switch r.path.kind {
	case pathEqual:
		m.Path = &agentpb.PathMatch{Match: &agentpb.PathMatch_Equal{Equal: r.path.text}}
	case pathPrefix:
		m.Path = &agentpb.PathMatch{Match: &agentpb.PathMatch_Prefix{Prefix: r.path.text}}
	case pathRegex:
		m.Path = &agentpb.PathMatch{Match: &agentpb.PathMatch_Regex{Regex: r.path.text}}
	}
	return m
}

// Program returns the number of instructions of all expressions of the rule, which is what it costs
// in memory, and for each byte that is compared.
func (r Rule) Program() int {
	size := 0
	for _, h := range r.headers {
		if h.regex != nil {
			size += h.regex.program
		}
	}
	if r.path.regex != nil {
		size += r.path.regex.program
	}
	return size
}

// all reports whether the rule has no condition.
func (r Rule) all() bool { return len(r.headers) == 0 && r.path.kind == pathAny }

func newHeader(name string, value, regex *string) (header, error) {
	if !httpguts.ValidHeaderFieldName(name) {
		return header{}, fmt.Errorf(
			"%q is not a header name: use letters, digits and hyphens, as in x-user", name)
	}
	h := header{name: strings.ToLower(name)}
	switch {
	case (value == nil) == (regex == nil):
		return header{}, fmt.Errorf("header %s: give either a value or a regex, and not both", name)
	case value != nil:
		h.text = textproto.TrimString(*value)
		if !httpguts.ValidHeaderFieldValue(h.text) {
			return header{}, fmt.Errorf(
				"header %s: %q cannot be the value of a header: it holds control characters", name, h.text)
		}
		return h, nil
	}
	h.text = *regex
	var err error
	if h.regex, err = compile(*regex); err != nil {
		return header{}, fmt.Errorf("header %s: %w", name, err)
	}
	return h, nil
}

func newPath(equal, prefix, regex *string) (path, error) {
	given := 0
	for _, s := range []*string{equal, prefix, regex} {
		if s != nil {
			given++
		}
	}
	if given != 1 {
		return path{}, errors.New("give exactly one of equal, prefix and regex")
	}
	switch {
	case equal != nil:
		p := path{kind: pathEqual, text: *equal}
		if p.text == "*" { // OPTIONS *, RFC 9112 §3.2.4
			return p, nil
		}
		return p, checkPath("equal", p.text)
	case prefix != nil:
		return path{kind: pathPrefix, text: *prefix}, checkPath("prefix", *prefix)
	}
	re, err := compile(*regex)
	if err != nil {
		return path{}, err
	}
	return path{kind: pathRegex, text: *regex, regex: re}, nil
}

// checkPath refuses what could never match, rather than have someone wait for requests that do not
// come.
func checkPath(field, text string) error {
	switch {
	case !strings.HasPrefix(text, "/"):
		return fmt.Errorf("%s %q can never match: start it with /", field, text)
	case strings.ContainsAny(text, "?#"):
		return fmt.Errorf("%s %q can never match: the path is compared without its query, so leave out ? and what follows", field, text)
	}
	return nil
}
