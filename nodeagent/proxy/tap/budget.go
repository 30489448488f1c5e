// SPDX-License-Identifier: Apache-2.0

package tap

import "sync/atomic"

// Bounds of all taps of a node agent.
const (
	// maxBytes may be on their way to laptops.
	maxBytes = 32 << 20
	// maxAllLines tunnels may be open.
	maxAllLines = 512
)

// Budget is what all taps of a node agent may hold together.
type Budget struct {
	bytes, lines         atomic.Int64
	copied, cut, dropped atomic.Uint64
}

// Bytes is how many bytes are on their way to laptops, as far as that can be known; Lines how many
// tunnels are open for copies.
func (b *Budget) Bytes() int64 { return b.bytes.Load() }

// Lines is how many tunnels are open for copies.
func (b *Budget) Lines() int64 { return b.lines.Load() }

// Counts are those of all taps that there have been.
func (b *Budget) Counts() Counts {
	return Counts{Copied: b.copied.Load(), Cut: b.cut.Load(), Dropped: b.dropped.Load()}
}

func (b *Budget) full() bool { return b.bytes.Load() >= maxBytes }

func (b *Budget) take(n int) bool {
	if b.bytes.Add(int64(n)) > maxBytes {
		b.bytes.Add(-int64(n))
		return false
	}
	return true
}

func (b *Budget) give(n int) { b.bytes.Add(-int64(n)) }

func (b *Budget) addLine() bool {
	if b.lines.Add(1) > maxAllLines {
		b.lines.Add(-1)
		return false
	}
	return true
}

func (b *Budget) removeLine() { b.lines.Add(-1) }
