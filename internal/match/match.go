// SPDX-License-Identifier: Apache-2.0

package match

import (
	"bytes"
	"sync"
)

// Head is a request's head, as the one who parsed it offers it.
type Head interface {
	// Path is the path of the request target as it was sent, without the query. Of a target in
	// absolute form ("http://host/p?q", RFC 9112 §3.2.2) it is the path part ("/p"; "/" when there
	// is none), of "*" it is "*", of a target in authority form it is empty.
	Path() []byte
	// Values calls yield with the value of each line of a field until yield returns false. The name
	// is in lower case. yield must not keep the value.
	Values(name string, yield func(value []byte) bool)
}

// Match reports whether the request fulfils every condition. It does not allocate. A value that is
// too long to be compared with an expression does not match it: see MaxValue.
func (r Rule) Match(head Head) bool {
	effort := maxRequestEffort
	if r.path.kind != pathAny && !r.path.match(head.Path(), &effort) {
		return false
	}
	if len(r.headers) == 0 {
		return true
	}
	s := scans.Get().(*scan)
	defer scans.Put(s)
	s.effort = effort
	for i := range r.headers {
		if !s.run(&r.headers[i], head) {
			return false
		}
	}
	return true
}

// scan looks for one condition among the lines of a field. Scans are pooled together with their
// bound method, because a closure that is passed through an interface would be allocated for each
// request.
type scan struct {
	header *header
	effort int // what is left for the expressions of the rule
	found  bool
	yield  func([]byte) bool
}

var scans = sync.Pool{New: func() any {
	s := &scan{}
	s.yield = s.line
	return s
}}

func (s *scan) run(h *header, head Head) bool {
	s.header, s.found = h, false
	head.Values(h.name, s.yield)
	s.header = nil
	return s.found
}

func (s *scan) line(value []byte) bool {
	s.found = s.header.match(value, &s.effort)
	return !s.found
}

func (h *header) match(value []byte, effort *int) bool {
	value = bytes.Trim(value, " \t")
	if h.regex != nil {
		return h.regex.match(value, effort)
	}
	return string(value) == h.text
}

func (p *path) match(sent []byte, effort *int) bool {
	switch p.kind {
	case pathEqual:
		return string(sent) == p.text
	case pathPrefix:
		return len(sent) >= len(p.text) && string(sent[:len(p.text)]) == p.text
	case pathRegex:
		return p.regex.match(sent, effort)
	}
	return true
}
