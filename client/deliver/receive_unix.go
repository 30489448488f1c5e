// SPDX-License-Identifier: Apache-2.0

//go:build unix

package deliver

import (
	"net"
	"os"
	"syscall"
)

// receive waits for a datagram, and takes a buffer when there is one.
func receive(c *net.UDPConn) (buffer *[]byte, n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	waitErr := raw.Read(func(fd uintptr) bool {
		buffer = datagramBuffers.Get().(*[]byte)
		for {
			if n, err = syscall.Read(int(fd), *buffer); err != syscall.EINTR {
				break
			}
		}
		if err != syscall.EAGAIN {
			return true
		}
		datagramBuffers.Put(buffer)
		buffer = nil
		return false
	})
	if waitErr != nil {
		return buffer, 0, waitErr
	}
	return buffer, max(n, 0), os.NewSyscallError("read", err)
}
