// SPDX-License-Identifier: Apache-2.0

//go:build unix

package launch

import (
	"os"
	"syscall"
)

// takeTurn locks the log, on a descriptor of its own: the one that the daemon inherits would keep
// it locked. taken is false while another command has the lock. If locking is not possible, all
// take their turn at once.
func takeTurn(log string) (release func(), taken bool) {
	f, err := os.Open(log)
	if err != nil {
		return func() {}, true
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == syscall.EWOULDBLOCK {
		_ = f.Close()
		return nil, false
	}
	return func() { _ = f.Close() }, true
}
