// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
)

func TestAThreadThatCannotReturnRunsNoOtherGoroutine(t *testing.T) {
	pod := testnet.NewNode(t).NewPod(t)
	foreign, before := fmt.Sprintf("net:[%d]", pod.Inode()), here(t)
	noHome, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer noHome.Close()

	recovered, end := make(chan any), make(chan struct{})
	var visitor sync.WaitGroup
	visitor.Go(func() {
		defer func() {
			recovered <- recover()
			<-end // alive: its thread must be its own
		}()
		_ = pod.Control(func(there int) error {
			return netns.Visit("the pod", unix.CLONE_NEWNET, there, int(noHome.Fd()), func() error { return nil })
		})
	})
	assert.Contains(t, <-recovered, "leave the pod: ")
	strays := func() int64 {
		var strays atomic.Int64
		var others sync.WaitGroup
		for range 2000 {
			others.Go(func() {
				if name, err := os.Readlink("/proc/thread-self/ns/net"); err == nil && name == foreign {
					strays.Add(1)
				}
			})
		}
		others.Wait()
		return strays.Load()
	}
	assert.Zero(t, strays(), "while the goroutine that was stranded lives")
	close(end)
	visitor.Wait()
	assert.Zero(t, strays(), "after it has ended")
	assert.Equal(t, before, here(t))
}

func TestANamespaceThatCannotBeEnteredIsAnError(t *testing.T) {
	testnet.RequireRoot(t)
	none, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer none.Close()
	before := here(t)
	err = netns.Visit("nowhere", unix.CLONE_NEWNET, int(none.Fd()), int(none.Fd()), func() error {
		t.Error("fn ran")
		return nil
	})
	assert.ErrorContains(t, err, "enter nowhere: ")
	assert.Equal(t, before, here(t))
}
