// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"strings"
)

// laxHead is the head of a request that cannot be framed, read as a lenient server would. It serves
// counting alone: nothing is diverted because of it.
type laxHead []byte

// Path implements match.Head.
func (h laxHead) Path() []byte {
	line, _, _ := bytes.Cut(bytes.TrimLeft(h, "\r\n"), []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 2 {
		return nil
	}
	path, _, _ := bytes.Cut(fields[1], []byte("?"))
	return path
}

// Values implements match.Head.
func (h laxHead) Values(name string, yield func(value []byte) bool) {
	_, rest, _ := bytes.Cut(bytes.TrimLeft(h, "\r\n"), []byte("\n"))
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		if line = bytes.TrimRight(line, "\r"); len(line) == 0 {
			return
		}
		key, value, ok := bytes.Cut(line, []byte(":"))
		if ok && strings.EqualFold(string(bytes.TrimSpace(key)), name) && !yield(bytes.TrimSpace(value)) {
			return
		}
	}
}
