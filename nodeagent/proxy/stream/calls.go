// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// These calls never wait, so Go's scheduler is not told of them. It would take a thread that the
// kernel has interrupted in one of them for one that waits, and have another one take its place:
// for a connection or request of a few microseconds that is a good part of the cost.

// recv reads what there is.
func recv(fd uintptr, p []byte, flags int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))),
		uintptr(len(p)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// send writes as much as there is room for.
func send(fd uintptr, p []byte, flags int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))),
		uintptr(len(p)),
		uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// shutdown ends the stream to the other side.
func shutdown(fd uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, fd, unix.SHUT_WR, 0); errno != 0 {
		return errno
	}
	return nil
}
