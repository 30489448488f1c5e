//go:build !unix

package tunnel

import "io"

func readInto(r io.Reader) readFunc { return plainRead(r) }
