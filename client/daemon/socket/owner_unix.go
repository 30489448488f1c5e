// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"sidestep.dev/sidestep/internal/reason"
)

// owned refuses a socket, or a directory of one, that belongs to another user: the daemon there
// would learn which cluster is meant, and as whom. Root may do everything anyway.
func owned(path string) error { return ownedBy(path, os.Getuid()) }

func ownedBy(path string, me int) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrPermission) {
		return reason.Advise(fmt.Errorf("the daemon's socket %s is in a directory of another user", path),
			"%s", ownPath)
	}
	if err != nil {
		return nil // the dialer's error is better
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == me || me == 0 {
		return nil
	}
	owner := strconv.Itoa(int(stat.Uid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return reason.Advise(fmt.Errorf("the daemon's socket %s belongs to user %s", path, owner),
		"run `sidestep quit -s` as %s, or %s", owner, ownPath)
}
