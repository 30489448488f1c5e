// SPDX-License-Identifier: Apache-2.0

//go:build unix

package tunnel

import (
	"io"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc/mem"
)

// readInto waits until a TCP connection can be read before it takes a chunk, so that thousands of
// idle connections cost none.
func readInto(r io.Reader, chunks mem.BufferPool) readFunc {
	tcp, ok := r.(*net.TCPConn)
	if !ok {
		return plainRead(r, chunks)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return plainRead(r, chunks)
	}
	return func() (chunk *[]byte, n int, err error) {
		waitErr := raw.Read(func(fd uintptr) bool {
			chunk = chunks.Get(chunkSize)
			for {
				n, err = syscall.Read(int(fd), *chunk)
				if err != syscall.EINTR {
					break
				}
			}
			if err != syscall.EAGAIN {
				return true
			}
			chunks.Put(chunk)
			chunk = nil
			return false
		})
		switch {
		case waitErr != nil:
			return chunk, 0, waitErr
		case err != nil:
			return chunk, 0, &net.OpError{Op: "read", Net: "tcp", Source: tcp.LocalAddr(),
				Addr: tcp.RemoteAddr(), Err: os.NewSyscallError("read", err)}
		case n == 0:
			return chunk, 0, io.EOF
		}
		return chunk, n, nil
	}
}
