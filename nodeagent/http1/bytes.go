// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"encoding/binary"
)

// isToken is the tchar of RFC 9110 §5.6.2.
var isToken = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

const (
	eachByte = 0x0101010101010101
	highBits = 0x8080808080808080
)

// isText reports whether p holds nothing but what a field value may: HTAB, SP, VCHAR and obs-text.
func isText(p []byte) bool {
	for len(p) >= 8 {
		x := binary.LittleEndian.Uint64(p)
		del := x ^ eachByte*0x7f
		if ((x-eachByte*0x20)&^x|(del-eachByte)&^del)&highBits != 0 && !isTextSlow(p[:8]) {
			return false
		}
		p = p[8:]
	}
	return isTextSlow(p)
}

func isTextSlow(p []byte) bool {
	for _, c := range p {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// token returns the length of the token that p starts with.
func token(p []byte) int {
	for i, c := range p {
		if !isToken[c] {
			return i
		}
	}
	return len(p)
}

func trim(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

// is reports whether p is lower, which is in lower case, in any case.
func is(p []byte, lower string) bool {
	if len(p) != len(lower) {
		return false
	}
	for i, c := range p {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// elements calls yield for each element of a comma-separated list.
func elements(list []byte, yield func([]byte)) {
	for len(list) > 0 {
		one, rest, _ := bytes.Cut(list, []byte{','})
		if one = trim(one); len(one) > 0 {
			yield(one)
		}
		list = rest
	}
}

// parseLength reads a Content-Length. What parsers have been seen to read differently is refused:
// signs, lists, leading zeros, numbers beyond 18 digits.
func parseLength(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 18 || p[0] == '0' && len(p) > 1 {
		return 0, false
	}
	var n int64
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
