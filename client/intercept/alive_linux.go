// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// Alive says whether a process may still be there. One that has ended and that its parent has not
// asked about is not.
func Alive(process int) bool {
	if syscall.Kill(process, 0) == syscall.ESRCH {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process))
	if err != nil {
		return true // /proc may hide other users' processes
	}
	// PID (COMM) STATE ..., where COMM may hold anything.
	_, after, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z")) && !bytes.HasPrefix(after, []byte("X"))
}
