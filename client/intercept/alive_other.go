// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package intercept

import "syscall"

// Alive reports whether a process may still run.
func Alive(process int) bool { return syscall.Kill(process, 0) != syscall.ESRCH }
