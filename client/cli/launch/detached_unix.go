// SPDX-License-Identifier: Apache-2.0

//go:build unix

package launch

import "syscall"

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true}
}
