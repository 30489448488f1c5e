//go:build !linux && !windows

package intercept

import "syscall"

// alive says whether a process may still be there.
func alive(process int) bool { return syscall.Kill(process, 0) != syscall.ESRCH }
