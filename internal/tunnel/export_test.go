package tunnel

import (
	"time"

	"google.golang.org/grpc/mem"
)

// UseChunks replaces the pool of chunks until restore is called.
func UseChunks(p mem.BufferPool) (restore func()) {
	old := chunks
	chunks = p
	return func() { chunks = old }
}

// SetClosePatience is for a connection that is not closed yet.
func (c *Conn) SetClosePatience(d time.Duration) { c.closePatience = d }

// CopyOf and Filled make buffers.
var (
	CopyOf = copyOf
	Filled = filled
)

// Sizes.
const (
	ChunkSize    = chunkSize
	StreamWindow = streamWindow
)
