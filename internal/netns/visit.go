// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Visit runs fn on a thread in another namespace: there and home are descriptors of namespaces of
// the kind, such as unix.CLONE_NEWNET, and name says in errors which one is visited. fn must not
// start goroutines, which would run outside.
//
// Visit panics if the thread cannot return. The thread then stays locked to the goroutine, even if
// the panic is recovered, so that no other goroutine ever runs in the foreign namespace; the runtime
// ends the thread together with the goroutine.
func Visit(name string, kind, there, home int, fn func() error) error {
	// A locked thread is not used for other goroutines, nor for starting other threads.
	runtime.LockOSThread()
	if err := unix.Setns(there, kind); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", name, explain(err))
	}
	defer func() {
		if err := unix.Setns(home, kind); err != nil {
			panic(fmt.Sprintf("leave %s: %v", name, err))
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (this takes CAP_SYS_ADMIN)", err)
	}
	return err
}
