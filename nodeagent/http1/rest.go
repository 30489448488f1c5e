// SPDX-License-Identifier: Apache-2.0

package http1

// Rest follows a body as it passes.
type Rest struct {
	kind   BodyKind
	left   int64
	chunks Chunked
}

// Start returns what follows b from its first byte. b is Sized or InChunks.
func (b Body) Start() Rest { return Rest{kind: b.Kind, left: b.Length} }

// Scan is Chunked.Scan for both kinds of body.
func (r *Rest) Scan(p []byte) (n int, done bool, err error) {
	if r.kind == InChunks {
		return r.chunks.Scan(p)
	}
	k := min(r.left, int64(len(p)))
	r.left -= k
	return int(k), r.left == 0, nil
}

// Done reports whether the body is complete.
func (r *Rest) Done() bool {
	if r.kind == InChunks {
		return r.chunks.state == chunkedDone
	}
	return r.left == 0
}

// Data is how many bytes may be passed on unseen; Skip says that they were.
func (r *Rest) Data() int64 {
	if r.kind == InChunks {
		return r.chunks.Data()
	}
	return r.left
}

// Skip says that n bytes, at most Data, were passed on unseen.
func (r *Rest) Skip(n int64) {
	if r.kind == InChunks {
		r.chunks.Skip(n)
		return
	}
	r.left -= n
}
