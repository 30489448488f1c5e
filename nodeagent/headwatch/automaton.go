// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"encoding/binary"
	"fmt"
	"slices"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
)

// Check returns an error if an automaton for the needles would be too large.
func Check(needles []match.Needle) error {
	_, err := newAutomaton(needles)
	return err
}

// newAutomaton builds what the kernel runs over the bytes of a head. It finds something in every head that
// package http1 understands and that has one of the needles, and it finds where a head ends. What cannot become
// a head has ended, too.
func newAutomaton(needles []match.Needle) (*bpf.Automaton, error) {
	var err error
	// Long needles may make more states than there are. Their beginnings are found in no fewer heads. If too
	// little is left of them, everybody's requests would be queued.
	for limit := maxNeedle; limit >= minNeedle; limit /= 2 {
		var a *bpf.Automaton
		if a, err = newBuilder(needles, limit).build(); err == nil {
			return a, nil
		}
	}
	return nil, fmt.Errorf("the intercepts of this port look for too many different headers and paths: %w", err)
}

// maxNeedle is how many bytes of a needle's parts are looked for, and minNeedle the fewest that are of use.
const (
	maxNeedle = 64
	minNeedle = 8
)

// Where in a head the automaton is.
type place uint8

const (
	inMethod place = iota
	inTarget       // and the rest of the request line
	inFields
	past
)

// element matches one byte, or any number of them.
type element struct {
	bytes func(b byte) bool
	many  bool
}

// position is how much of a pattern was seen.
type position struct{ pattern, at int }

// node is a state of the automaton before it has a number.
type node struct {
	place place
	end   int        // how much of CR LF CR LF has been seen
	in    []position // sorted
}

func (n node) appendKey(key []byte) []byte {
	key = append(key, byte(n.place), byte(n.end))
	for _, p := range n.in {
		key = binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(key, uint16(p.pattern)),
			uint16(p.at))
	}
	return key
}

type builder struct {
	line, fields []int // which patterns may begin where
	patterns     [][]element
	numbers      map[string]uint16
	nodes        []node
	key          []byte // for reuse
}

func newBuilder(needles []match.Needle, limit int) *builder {
	b := &builder{numbers: map[string]uint16{}}
	for _, n := range needles {
		pattern := compile(n, limit)
		if n.Header == "" {
			b.line = append(b.line, len(b.patterns))
		} else {
			b.fields = append(b.fields, len(b.patterns))
		}
		b.patterns = append(b.patterns, pattern)
	}
	return b
}

// compile returns the pattern of at most limit bytes of each part of a needle.
func compile(n match.Needle, limit int) (p []element) {
	exactly := func(c byte) { p = append(p, element{bytes: func(b byte) bool { return b == c }}) }
	if n.Header == "" {
		for _, c := range []byte(n.Path[:min(len(n.Path), limit)]) {
			exactly(c)
		}
		if len(p) == 0 {
			exactly('\n')
		}
		return p
	}
	exactly('\n')
	name := n.Header[:min(len(n.Header), limit)]
	for _, c := range []byte(name) {
		p = append(p, element{bytes: func(b byte) bool { return lower(b) == c }})
	}
	if len(name) < len(n.Header) {
		return p
	}
	exactly(':')
	space := element{bytes: func(b byte) bool { return b == ' ' || b == '\t' }, many: true}
	value := n.Value[:min(len(n.Value), limit)]
	if value == "" {
		return p
	}
	p = append(p, space)
	for _, c := range []byte(value) {
		exactly(c)
	}
	if n.Whole && len(value) == len(n.Value) {
		p = append(p, space)
		exactly('\r')
	}
	return p
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

func (b *builder) build() (*bpf.Automaton, error) {
	a := &bpf.Automaton{}
	b.number(node{place: inMethod}) // bpf.StateStart
	b.number(node{place: inFields}) // bpf.StateMiddle
	for i := 0; i < len(b.nodes); i++ {
		for c := range 256 {
			next, found := b.step(b.nodes[i], byte(c))
			entry := b.number(next)
			if len(b.nodes) > bpf.AutomatonStates {
				return nil, fmt.Errorf("the automaton needs more than %d states", bpf.AutomatonStates)
			}
			if found {
				entry |= bpf.EntryFound
			}
			if next.place == past {
				entry |= bpf.EntryEnded
			}
			a.Next[i<<8|c] = entry
		}
	}
	return a, nil
}

func (b *builder) number(n node) uint16 {
	b.key = n.appendKey(b.key[:0])
	if has, ok := b.numbers[string(b.key)]; ok {
		return has
	}
	number := uint16(len(b.nodes))
	b.nodes = append(b.nodes, n)
	b.numbers[string(b.key)] = number
	return number
}

func (b *builder) step(n node, c byte) (next node, found bool) {
	switch n.place {
	case past:
		return n, false
	case inMethod:
		switch {
		case c == ' ' && n.end == 1: // end is 1 once there was a byte of the method
			return node{place: inTarget}, false
		case tchar(c):
			return node{place: inMethod, end: 1}, false
		}
		return node{place: past}, false // no request
	}
	next = node{place: n.place, end: ending(n.end, c)}
	starts := b.fields
	if n.place == inTarget {
		starts = b.line
	}
	next.in, found = b.advance(n.in, starts, c)
	if n.place == inTarget && c == '\n' {
		var also bool
		next.place = inFields
		next.in, also = b.advance(nil, b.fields, c)
		found = found || also
	}
	if next.end == len("\r\n\r\n") {
		return node{place: past}, found
	}
	return next, found
}

// ending returns how much of CR LF CR LF was seen after one more byte.
func ending(seen int, c byte) int {
	switch {
	case c == '\r' && seen == 2:
		return 3
	case c == '\r':
		return 1
	case c == '\n' && (seen == 1 || seen == 3):
		return seen + 1
	}
	return 0
}

// advance moves on in all patterns, and begins new ones.
func (b *builder) advance(in []position, starts []int, c byte) (next []position, found bool) {
	try := func(p position) {
		for ; p.at < len(b.patterns[p.pattern]); p.at++ {
			e := b.patterns[p.pattern][p.at]
			if e.bytes(c) {
				to := position{p.pattern, p.at + 1}
				if e.many {
					to.at = p.at
				}
				if to.at == len(b.patterns[p.pattern]) {
					found = true
				} else {
					next = append(next, to)
				}
			}
			if !e.many {
				return
			}
		}
	}
	for _, p := range in {
		try(p)
	}
	for _, s := range starts {
		try(position{pattern: s})
	}
	slices.SortFunc(next, func(x, y position) int {
		if x.pattern != y.pattern {
			return x.pattern - y.pattern
		}
		return x.at - y.at
	})
	return slices.Compact(next), found
}

// tchar reports whether c is a tchar of RFC 9110 §5.6.2.
func tchar(c byte) bool {
	switch {
	case 'a' <= lower(c) && lower(c) <= 'z', '0' <= c && c <= '9':
		return true
	}
	return slices.Contains([]byte("!#$%&'*+-.^_`|~"), c)
}
