// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// Alive reports whether a process may still run. A zombie, which has ended and whose parent has not
// waited for it, does not.
func Alive(process int) bool {
	if syscall.Kill(process, 0) == syscall.ESRCH {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process))
	if err != nil {
		return true // /proc may hide other users' processes
	}
	// The format is "PID (COMM) STATE ...", and COMM may contain anything.
	_, after, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z")) && !bytes.HasPrefix(after, []byte("X"))
}
