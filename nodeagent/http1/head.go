// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// head reads the lines of a head as they arrive, each byte once, and keeps what framing needs.
type head struct {
	bytes []byte // all of it, once it is complete
	line  int    // where the line that is being read starts
	seen  int    // bytes before this one are checked
	lines int    // complete lines

	minor     uint8 // of the version
	length    int64 // -1: no Content-Length
	chunked   bool
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	upgrade   bool // there is an Upgrade field
	expect    bool // Expect: 100-continue
}

// read goes on reading p, which starts with the head and holds at least what it did at the last
// call. It returns the head's length once it is complete, else 0.
func (h *head) read(p []byte, first func(line []byte) error) (int, error) {
	for {
		i := bytes.IndexByte(p[h.seen:], '\n')
		if i < 0 {
			return 0, h.partial(p)
		}
		end := h.seen + i
		if end >= MaxHead {
			return 0, DoubtHeadTooLong
		}
		if end == h.line || p[end-1] != '\r' {
			return 0, DoubtLineEnd
		}
		line := p[h.line : end-1]
		h.line, h.seen = end+1, end+1
		h.lines++
		var err error
		switch {
		case h.lines == 1:
			err = first(line)
		case len(line) == 0:
			h.bytes = p[:end+1]
			return end + 1, nil
		default:
			err = h.field(line)
		}
		if err != nil {
			return 0, err
		}
	}
}

// partial looks at a line whose end has not come. A sender that stops in a line that no server
// would take must not be left waiting.
func (h *head) partial(p []byte) error {
	if len(p) >= MaxHead {
		return DoubtHeadTooLong
	}
	fresh := p[h.seen:]
	if n := len(fresh); n > 0 && fresh[n-1] == '\r' {
		fresh = fresh[:n-1]
	}
	if bytes.IndexByte(fresh, '\r') >= 0 {
		return DoubtLineEnd
	}
	if !isText(fresh) {
		return DoubtControl
	}
	h.seen += len(fresh)
	return nil
}

func (h *head) field(line []byte) error {
	n := token(line)
	if n == 0 && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return DoubtFold
	}
	if n == 0 || n == len(line) || line[n] != ':' {
		return DoubtField
	}
	name, value := line[:n], line[n+1:]
	if !isText(value) {
		if bytes.IndexByte(value, '\r') >= 0 {
			return DoubtLineEnd
		}
		return DoubtControl
	}
	switch n {
	case len("content-length"):
		if is(name, "content_length") { // some gateways take _ for -
			return DoubtField
		}
		if is(name, "content-length") {
			var ok bool
			if h.length >= 0 {
				return DoubtLength
			}
			if h.length, ok = parseLength(trim(value)); !ok {
				return DoubtLength
			}
		}
	case len("transfer-encoding"):
		if is(name, "transfer_encoding") {
			return DoubtField
		}
		if is(name, "transfer-encoding") {
			if h.chunked || !is(trim(value), "chunked") {
				return DoubtCoding
			}
			h.chunked = true
		}
	case len("connection"):
		if is(name, "connection") {
			h.connection(value)
		}
	case len("upgrade"):
		h.upgrade = h.upgrade || is(name, "upgrade")
	case len("expect"):
		h.expect = h.expect || is(name, "expect") && is(trim(value), "100-continue")
	}
	return nil
}

func (h *head) connection(value []byte) {
	elements(value, func(option []byte) {
		switch {
		case is(option, "close"):
			h.close = true
		case is(option, "keep-alive"):
			h.keepAlive = true
		}
	})
}

// consistent checks what no single line can show.
func (h *head) consistent() error {
	switch {
	case h.chunked && h.length >= 0:
		return DoubtBoth
	case h.chunked && h.minor == 0:
		return DoubtOldCoding
	}
	return nil
}

func (h *head) body() Body {
	switch {
	case h.chunked:
		return Body{Kind: InChunks}
	case h.length > 0:
		return Body{Length: h.length}
	}
	return Body{}
}

// version reads HTTP/1.0 or HTTP/1.1.
func (h *head) version(p []byte) error {
	switch string(p) {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
		h.minor = 0
	default:
		return DoubtVersion
	}
	return nil
}

// persists reports whether this message lets the connection go on after it (RFC 9112 §9.3).
func (h *head) persists() bool {
	return !h.close && (h.minor == 1 || h.keepAlive)
}

// values yields the values of the fields of that name, which is in lower case, trimmed.
func (h *head) values(name string, yield func([]byte) bool) {
	p := h.bytes
	p = p[bytes.IndexByte(p, '\n')+1:]
	for len(p) > 2 {
		end := bytes.IndexByte(p, '\n')
		if end > len(name) && p[len(name)] == ':' && is(p[:len(name)], name) &&
			!yield(trim(p[len(name)+1:end-1])) {
			return
		}
		p = p[end+1:]
	}
}
