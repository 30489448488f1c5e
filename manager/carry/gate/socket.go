// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control calls set with the descriptor of a TCP connection; with others it does nothing. Without
// what these options give, a connection works all the same.
func control(conn net.Conn, set func(fd int)) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { set(int(fd)) })
	}
}

// endWhenSilent has the kernel end a connection on which the peer acknowledges nothing for so long.
func endWhenSilent(conn net.Conn, after time.Duration) {
	control(conn, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	})
}

// narrow bounds what the kernel keeps of a connection that is not read. It charges the container for
// that: 130 to 200 KiB of each, if nothing is said.
func narrow(conn net.Conn, bytes int) {
	control(conn, func(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes) })
}

// widen lets the kernel choose again; before Linux 5.14, it is as much as net.core.rmem_max allows.
func widen(conn net.Conn) {
	control(conn, func(fd int) {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		}
	})
}
