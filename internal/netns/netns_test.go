// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
)

func here(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	require.NoError(t, err)
	return name
}

func TestDo(t *testing.T) {
	pod := testnet.NewNode(t).NewPod(t)
	there := fmt.Sprintf("net:[%d]", pod.Inode())
	before := here(t)
	require.NoError(t, pod.Do(func() error {
		assert.Equal(t, there, here(t))
		return nil
	}))
	assert.Equal(t, before, here(t))
	assert.ErrorIs(t, pod.Do(func() error { return fs.ErrInvalid }), fs.ErrInvalid)
	assert.Panics(t, func() { _ = pod.Do(func() error { panic("x") }) })
	assert.Equal(t, before, here(t), "back after a panic")
}

func TestCloseDuringAVisitDoesNotStrandTheVisitor(t *testing.T) {
	pod := testnet.NewNode(t).NewPod(t)
	path := fmt.Sprintf("/proc/self/fd/%d", func() (fd int) {
		require.NoError(t, pod.Control(func(n int) error { fd = n; return nil }))
		return fd
	}())
	for range 50 {
		ns, err := netns.Open(path)
		require.NoError(t, err)
		assert.Equal(t, pod.ID(), ns.ID())
		var visitors sync.WaitGroup
		for range 4 {
			visitors.Go(func() {
				before := here(t)
				for ns.Do(func() error { return nil }) == nil {
				}
				assert.Equal(t, before, here(t))
			})
		}
		require.NoError(t, ns.Close())
		visitors.Wait()
		assert.Error(t, ns.Do(func() error { return nil }))
	}
}

func TestHolds(t *testing.T) {
	node := testnet.NewNode(t)
	pod, other := node.NewPod(t), node.NewPod(t)
	for ip, want := range map[string]bool{pod.IP4.String(): true, pod.IP6.String(): true,
		other.IP4.String(): false} {
		holds, err := pod.Holds([]netip.Addr{netip.MustParseAddr(ip)})
		require.NoError(t, err)
		assert.Equal(t, want, holds, ip)
	}
}
