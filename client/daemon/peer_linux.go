// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// peer is the user at the other end of a unix connection.
func peer(conn net.Conn) (uid int, ok bool) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred,
			credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil ||
		credErr != nil {
		return 0, false
	}
	return int(cred.Uid), true
}
