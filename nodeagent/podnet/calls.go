// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connect begins to connect a non-blocking socket. It bypasses Go's scheduler: the call walks
// through the pod's whole network stack, including the app's side. If the kernel interrupted it
// there, the scheduler would wake another thread to take this one's place, although this one does
// not wait.
func connect(fd int, to netip.AddrPort) error {
	var errno unix.Errno
	if to.Addr().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)),
			unix.SizeofSockaddrInet4)
	} else {
		sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)),
			unix.SizeofSockaddrInet6)
	}
	if errno != 0 {
		return errno
	}
	return nil
}
