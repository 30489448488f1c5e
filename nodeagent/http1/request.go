// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Request is the head of a request. It is used over and over: Reset, then Parse as bytes arrive.
type Request struct {
	head
	method int // length
	target int // length
	kind   RequestKind
}

// RequestKind is what has to be known of a request to frame its response.
type RequestKind uint8

// The kinds of requests. The response to a Plain one is framed by its own head.
const (
	Plain   RequestKind = iota
	Head                // its response has no body
	Connect             // a 2xx response ends HTTP
)

// Reset makes r ready for another head.
func (r *Request) Reset() { *r = Request{head: head{length: -1}} }

// Parse reads p, which starts with the head and holds all that has arrived of it. It returns the
// head's length once it is complete, else 0: call it again with more. After an error, which is a
// Doubt, nothing about the bytes is certain. r refers to p until Reset.
func (r *Request) Parse(p []byte) (int, error) {
	n, err := r.read(p, r.requestLine)
	if n == 0 || err != nil {
		return 0, err
	}
	if err := r.consistent(); err != nil {
		return 0, err
	}
	if r.kind == Connect && (r.chunked || r.length > 0) {
		return 0, DoubtConnectBody
	}
	return n, nil
}

func (r *Request) requestLine(line []byte) error {
	m := token(line)
	if m == 0 || m == len(line) || line[m] != ' ' {
		return DoubtRequestLine
	}
	t := bytes.IndexByte(line[m+1:], ' ')
	if t <= 0 {
		return DoubtRequestLine
	}
	if !isText(line) || bytes.IndexByte(line[m+1:m+1+t], '\t') >= 0 {
		return DoubtRequestLine
	}
	r.method, r.target = m, t
	switch {
	case is(line[:m], "head"):
		r.kind = Head
		if string(line[:m]) != "HEAD" {
			return DoubtMethod
		}
	case is(line[:m], "connect"):
		r.kind = Connect
		if string(line[:m]) != "CONNECT" {
			return DoubtMethod
		}
	}
	return r.version(line[m+1+t+1:])
}

// Method returns the method.
func (r *Request) Method() []byte { return r.bytes[:r.method] }

// Target returns the request target as it was sent.
func (r *Request) Target() []byte { return r.bytes[r.method+1 : r.method+1+r.target] }

// Path returns the target's path without its query, as it was sent: nothing is decoded. It is empty
// for CONNECT, and "*" for OPTIONS *.
func (r *Request) Path() []byte {
	if r.kind == Connect {
		return nil
	}
	p := r.Target()
	if p[0] != '/' {
		if i := bytes.Index(p, []byte("://")); i > 0 && token(p[:i]) == i {
			p = p[i+3:]
			i = bytes.IndexAny(p, "/?")
			if i < 0 || p[i] == '?' {
				return []byte{'/'}
			}
			p = p[i:]
		}
	}
	if i := bytes.IndexByte(p, '?'); i >= 0 {
		p = p[:i]
	}
	return p
}

// Values calls yield for each value of the fields of that name, which is in lower case, until yield
// returns false. Values have no white space around them.
func (r *Request) Values(name string, yield func(value []byte) bool) { r.values(name, yield) }

// Kind is what the framing of the response needs.
func (r *Request) Kind() RequestKind { return r.kind }

// Body is the framing of the request's body (RFC 9112 §6.3).
func (r *Request) Body() Body { return r.body() }

// Persists reports whether the client means to send more requests on the connection.
func (r *Request) Persists() bool { return r.persists() }

// Switches reports whether the response may end HTTP on the connection, so that what follows the
// request cannot be understood before the response is.
func (r *Request) Switches() bool { return r.upgrade || r.kind == Connect }

// Expects reports whether the client may wait for an interim response before it sends the body.
func (r *Request) Expects() bool { return r.expect }

// Idempotent reports whether sending the request twice does no harm (RFC 9110 §9.2.2).
func (r *Request) Idempotent() bool {
	switch string(r.Method()) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND", "REPORT", "SEARCH":
		return true
	}
	return false
}

// methods are those that may be recognised before the request line is complete.
var methods = []string{
	"GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "PATCH ", "OPTIONS ", "CONNECT ", "TRACE ",
	"PROPFIND ", "PROPPATCH ", "MKCOL ", "COPY ", "MOVE ", "LOCK ", "UNLOCK ", "REPORT ", "SEARCH ",
}

// MayBeRequest reports whether a connection that begins with p may be HTTP/1. It exists for
// protocols without lines, which must not wait for a line to end: with an incomplete request line
// only well-known methods count.
func MayBeRequest(p []byte) bool {
	if bytes.IndexByte(p, '\n') >= 0 {
		return true // Parse knows
	}
	for _, m := range methods {
		n := min(len(m), len(p))
		if string(p[:n]) == m[:n] {
			return true
		}
	}
	return false
}
