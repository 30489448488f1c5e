// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"io"
	"sync"
)

// Size is what a buffer holds, in bytes, and Large what it can grow to.
const (
	Size  = 16 << 10
	Large = 80 << 10 // a head of the longest kind, and what came with it
)

var (
	buffers = sync.Pool{New: func() any { return new([Size]byte) }}
	larges  = sync.Pool{New: func() any { return new([Large]byte) }}
)

// ErrFull means that a buffer has no room left.
var ErrFull = errors.New("buffer is full")

// Buffer holds bytes that arrived and were not passed on yet. It has memory only while it has
// bytes. The zero value is ready.
type Buffer struct {
	small *[Size]byte
	large *[Large]byte
	mem   []byte
	r, w  int
}

// Bytes returns what is in the buffer, until the next call of another method.
func (b *Buffer) Bytes() []byte { return b.mem[b.r:b.w] }

// Len is the number of bytes in the buffer.
func (b *Buffer) Len() int { return b.w - b.r }

// Cost is how much memory the buffer has, once the next Fill has made room.
func (b *Buffer) Cost() int {
	if b.small != nil && b.r == 0 && b.w == len(b.mem) {
		return Large
	}
	return len(b.mem)
}

// Drop takes n bytes off the front.
func (b *Buffer) Drop(n int) {
	if b.r += n; b.r >= b.w {
		b.release()
	}
}

// release gives the memory back.
func (b *Buffer) release() {
	b.r, b.w, b.mem = 0, 0, nil
	if b.small != nil {
		buffers.Put(b.small)
		b.small = nil
	}
	if b.large != nil {
		larges.Put(b.large)
		b.large = nil
	}
}

// Free empties the buffer.
func (b *Buffer) Free() { b.release() }

// room returns memory to read into; b grows when it is full. The result is empty when it cannot.
func (b *Buffer) room() []byte {
	switch {
	case b.mem == nil:
		b.small = buffers.Get().(*[Size]byte)
		b.mem = b.small[:]
	case b.w < len(b.mem):
	case b.r > 0:
		b.w = copy(b.mem, b.mem[b.r:b.w])
		b.r = 0
	case b.large == nil:
		b.large = larges.Get().(*[Large]byte)
		b.w = copy(b.large[:], b.mem[b.r:b.w])
		b.r, b.mem = 0, b.large[:]
		buffers.Put(b.small)
		b.small = nil
	}
	return b.mem[b.w:]
}

// Grow has the next Fill take as much as a buffer can hold, if there are bytes at once. b is empty.
func (b *Buffer) Grow() {
	if b.mem == nil {
		b.large = larges.Get().(*[Large]byte)
		b.mem = b.large[:]
	}
}

// readFrom adds one Read's worth.
func (b *Buffer) readFrom(r io.Reader) error {
	room := b.room()
	if len(room) == 0 {
		return ErrFull
	}
	for range 100 {
		n, err := r.Read(room)
		b.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			if b.Len() == 0 {
				b.release()
			}
			return err
		}
	}
	return io.ErrNoProgress
}
