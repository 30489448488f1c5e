// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Peer returns the user at the other end of a unix connection, by SO_PEERCRED.
func Peer(conn net.Conn) (uid int, ok bool) {
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
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if errors.Join(err, credErr) != nil {
		return 0, false
	}
	return int(cred.Uid), true
}
