// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// chunkSize bounds the data of one frame, and is what a TCP connection is read by.
const chunkSize = 64 << 10

// smallData is what is copied into a buffer of its own size. Flow control counts bytes, not
// buffers: if each byte of a slow client kept a whole chunk while the peer holds it back, its
// window would stand for gigabytes.
const smallData = chunkSize / 4

// chunkPool holds buffers of chunkSize. For those gRPC's own pool would give out a megabyte each,
// and zero it every time.
type chunkPool struct{ pool sync.Pool }

func newChunkPool() *chunkPool {
	return &chunkPool{sync.Pool{New: func() any {
		b := make([]byte, chunkSize)
		return &b
	}}}
}

var chunks = newChunkPool()

// pools are where the buffers of a connection come from.
type pools struct {
	chunks mem.BufferPool // of chunkSize
	small  mem.BufferPool // of any size
}

// Get returns a buffer of length, which is at most chunkSize.
func (p *chunkPool) Get(length int) *[]byte {
	b := p.pool.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

// Put takes a buffer back.
func (p *chunkPool) Put(b *[]byte) { p.pool.Put(b) }

// copyOf is a buffer with a copy of data, of which there is at most chunkSize.
func (p pools) copyOf(data []byte) mem.Buffer {
	if len(data) <= smallData {
		return mem.Copy(data, p.small)
	}
	b := p.chunks.Get(len(data))
	copy(*b, data)
	return mem.NewBuffer(b, p.chunks)
}

// filled makes a buffer of a chunk whose first n bytes were filled; it takes the chunk.
func (p pools) filled(chunk *[]byte, n int) mem.Buffer {
	if n <= smallData {
		defer p.chunks.Put(chunk)
		return mem.Copy((*chunk)[:n], p.small)
	}
	*chunk = (*chunk)[:n]
	return mem.NewBuffer(chunk, p.chunks)
}
