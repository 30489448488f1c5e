// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"sync"
)

// Join passes bytes between a and b in both directions, first those in fromA, until both directions
// have ended. Half-closes and resets pass from one to the other. It closes both.
func Join(a, b Duplex, fromA *Buffer) {
	var back sync.WaitGroup
	back.Go(func() { pass(a, b, new(Buffer)) })
	pass(b, a, fromA)
	back.Wait()
	a.Close()
	b.Close()
}

func pass(dst, src Duplex, b *Buffer) {
	srcErr, dstErr := Copy(dst, src, b)
	if dstErr == nil && srcErr == io.EOF {
		dst.CloseWrite()
		return
	}
	dst.Reset()
	src.Reset()
}
