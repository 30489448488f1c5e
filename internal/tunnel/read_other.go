// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package tunnel

import (
	"io"

	"google.golang.org/grpc/mem"
)

func readInto(r io.Reader, chunks mem.BufferPool) readFunc { return plainRead(r, chunks) }
