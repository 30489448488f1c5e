// SPDX-License-Identifier: Apache-2.0

package privilege

import "golang.org/x/sys/unix"

const native = unix.AUDIT_ARCH_X86_64

var neverHere = []uint32{
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_MKNOD, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
}
