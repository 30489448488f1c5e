// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"time"

	"google.golang.org/grpc/mem"
)

// Pools makes a connection take its buffers elsewhere.
func Pools(chunks, small mem.BufferPool) Option {
	return func(c *Conn) { c.pools = pools{chunks, small} }
}

// SetClosePatience is for a connection that is not closed yet.
func (c *Conn) SetClosePatience(d time.Duration) { c.closePatience = d }

// CopyOf and Filled make buffers.
func CopyOf(chunks, small mem.BufferPool, data []byte) mem.Buffer {
	return pools{chunks, small}.copyOf(data)
}

// Filled takes the chunk.
func Filled(chunks, small mem.BufferPool, chunk *[]byte, n int) mem.Buffer {
	return pools{chunks, small}.filled(chunk, n)
}

// Sizes.
const (
	ChunkSize    = chunkSize
	StreamWindow = streamWindow
)
