// SPDX-License-Identifier: Apache-2.0

package http1

// Response is the head of a response. It is used over and over: Reset, then Parse as bytes arrive.
type Response struct {
	head
	status int
}

// Reset makes r ready for another head.
func (r *Response) Reset() { *r = Response{head: head{length: -1}} }

// Parse is for responses what Request.Parse is for requests.
func (r *Response) Parse(p []byte) (int, error) {
	n, err := r.read(p, r.statusLine)
	if n == 0 || err != nil {
		return 0, err
	}
	return n, r.consistent()
}

// statusLine takes a line without the space behind the code too: many servers that send no reason
// leave it out.
func (r *Response) statusLine(line []byte) error {
	const version = len("HTTP/1.1")
	if len(line) < version+4 || line[version] != ' ' || !isText(line) {
		return DoubtStatusLine
	}
	for _, c := range line[version+1 : version+4] {
		if c < '0' || c > '9' {
			return DoubtStatusLine
		}
		r.status = r.status*10 + int(c-'0')
	}
	if r.status < 100 || r.status > 599 || len(line) > version+4 && line[version+4] != ' ' {
		return DoubtStatusLine
	}
	return r.version(line[:version])
}

// Status is the status code, 100 to 599.
func (r *Response) Status() int { return r.status }

// Interim reports whether another response to the same request follows.
func (r *Response) Interim() bool { return r.status < 200 && r.status != 101 }

// Persists reports whether the server means to take more requests on the connection.
func (r *Response) Persists() bool { return r.persists() }

// Body is the framing of the response's body, for a request of that kind (RFC 9112 §6.3).
func (r *Response) Body(to RequestKind) (Body, error) {
	switch {
	case r.status == 101, to == Connect && r.status >= 200 && r.status < 300:
		if r.chunked || r.length > 0 {
			return Body{}, DoubtBodiless
		}
		return Body{Kind: Tunnelled}, nil
	case r.status < 200, r.status == 204:
		if r.chunked || r.length > 0 { // some servers send one, and clients differ in whether they read it
			return Body{}, DoubtBodiless
		}
		return Body{}, nil
	case to == Head, r.status == 304:
		return Body{}, nil
	case !r.chunked && r.length < 0:
		return Body{Kind: UntilClose}, nil
	}
	return r.body(), nil
}
