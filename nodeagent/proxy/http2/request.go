// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"strings"

	"golang.org/x/net/http2/hpack"
)

// head is a request's head as rules look at it.
type head struct {
	fields    []hpack.HeaderField
	method    string
	path      string
	authority string
	buf       []byte // the value that is being looked at
}

// parse reads the fields of a request, and reports whether it is one that everybody reads alike
// (RFC 9113 §8.3): pseudo-fields first, each once, and names in lower case.
func (h *head) parse(fields []hpack.HeaderField) bool {
	*h = head{fields: fields, buf: h.buf}
	pseudo := true
	var scheme, protocol string
	for i := range fields {
		name, value := fields[i].Name, fields[i].Value
		if !fields[i].IsPseudo() {
			pseudo = false
			if !isFieldName(name) {
				return false
			}
			continue
		}
		var to *string
		switch name {
		case ":method":
			to = &h.method
		case ":path":
			to = &h.path
		case ":authority":
			to = &h.authority
		case ":scheme":
			to = &scheme
		case ":protocol":
			to = &protocol
		}
		if !pseudo || to == nil || *to != "" || value == "" {
			return false
		}
		*to = value
	}
	if h.method == "CONNECT" && protocol == "" {
		return h.path == "" && scheme == ""
	}
	return h.method != "" && h.path != "" && scheme != ""
}

func isFieldName(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// Path implements match.Head.
func (h *head) Path() []byte {
	p, _, _ := strings.Cut(h.path, "?")
	h.buf = append(h.buf[:0], p...)
	return h.buf
}

// Values implements match.Head. What HTTP/1 has in Host is in :authority, and Cookie may come in
// crumbs (RFC 9113 §8.2.3).
func (h *head) Values(name string, yield func(value []byte) bool) {
	if name == "host" && h.authority != "" && !h.yield(h.authority, yield) {
		return
	}
	if name == "cookie" {
		h.cookie(yield)
		return
	}
	for i := range h.fields {
		if h.fields[i].Name == name && !h.fields[i].IsPseudo() && !h.yield(h.fields[i].Value, yield) {
			return
		}
	}
}

func (h *head) yield(value string, yield func([]byte) bool) bool {
	h.buf = append(h.buf[:0], strings.Trim(value, " \t")...)
	return yield(h.buf)
}

func (h *head) cookie(yield func([]byte) bool) {
	h.buf = h.buf[:0]
	found := false
	for i := range h.fields {
		if h.fields[i].Name != "cookie" {
			continue
		}
		if found {
			h.buf = append(h.buf, "; "...)
		}
		h.buf = append(h.buf, h.fields[i].Value...)
		found = true
	}
	if found {
		yield(h.buf)
	}
}

// isGRPC reports whether the answer has to be one of gRPC.
func (h *head) isGRPC() bool {
	for i := range h.fields {
		if h.fields[i].Name == "content-type" {
			return strings.HasPrefix(h.fields[i].Value, "application/grpc")
		}
	}
	return false
}

// idempotent reports whether sending the request twice does no harm (RFC 9110 §9.2.2).
func (h *head) idempotent() bool {
	switch h.method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND", "REPORT", "SEARCH":
		return true
	}
	return false
}
