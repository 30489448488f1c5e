// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// beatEvery is well below the second after which the steering programs take the agent for dead.
	beatEvery = 100 * time.Millisecond
	// stuckMax is how long a heartbeat may take before the agent counts as hung.
	stuckMax = 5 * time.Second
	// countEvery is how many beats there are from one look at what is left of file descriptors to
	// the next.
	countEvery = 5
	// recovery is how long the agent sends no heartbeat after it was found unable to serve, so that it
	// does not waver.
	recovery = 3 * time.Second
	// spareFiles is how many file descriptors must be free for connections that come between two
	// beats.
	spareFiles = 256
)

// heartbeat tells the kernel that connections are taken and can be passed on, for as long as that is so.
func (a *agent) heartbeat(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	var unable time.Time
	back := false
	for beats := 0; ; beats++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := cmp.Or(a.pods.Responsive(), enoughMemory())
		if err == nil && (beats%countEvery == 0 || !unable.IsZero()) {
			err = canOpen(spareFiles)
		}
		a.looked.Store(time.Now().UnixNano())
		if err != nil {
			if unable.IsZero() {
				a.cfg.Log.Error("connections go to the apps until this is over", "error", err)
				if err := a.steering.Hush(); err != nil {
					a.cfg.Log.Error("end the heartbeat", "error", err)
				}
			}
			if errors.Is(err, errMemory) && beats%(10*countEvery) == 0 {
				runtime.GC() // with little to do, it may be long until the next
			}
			unable = time.Now()
			continue
		}
		if !unable.IsZero() {
			if time.Since(unable) < recovery {
				continue
			}
			a.cfg.Log.Info("connections are steered again")
			unable, back = time.Time{}, true
		}
		if err := a.steering.Beat(); err != nil {
			a.cfg.Log.Error("heartbeat", "error", err)
		} else if back {
			a.pods.SteeredAgain()
			back = false
		}
	}
}

// able says whether the agent can serve what is steered to it.
func (a *agent) able() error {
	if err := a.pods.Responsive(); err != nil {
		return err
	}
	return cmp.Or(enoughMemory(), canOpen(spareFiles))
}

// alive says whether the agent is worth keeping. One that cannot take connections at the moment is,
// for the sake of those that it has: killing it would reset them.
func (a *agent) alive() error {
	if away := time.Since(time.Unix(0, a.looked.Load())); away > stuckMax {
		return fmt.Errorf("the node agent has not looked after itself for %s", away.Round(time.Second))
	}
	return nil
}

// canOpen says whether n more file descriptors can be opened.
func canOpen(n int) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("see if files can be opened: %w", err)
	}
	defer null.Close()
	for range n {
		fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("fewer than %d file descriptors are left: %w", n, err)
		}
		defer unix.Close(fd)
	}
	return nil
}
