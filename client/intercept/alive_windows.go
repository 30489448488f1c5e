// SPDX-License-Identifier: Apache-2.0

package intercept

import "os"

// Alive reports whether a process may still run.
func Alive(process int) bool {
	p, err := os.FindProcess(process)
	if err != nil {
		return false
	}
	_ = p.Release()
	return true
}
