// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/steer"
)

func TestRemovedPinsChangeNothingAndComeBack(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		for _, tc := range []struct {
			name string
			wipe func(t *testing.T, w *world)
		}{
			{"a pin is removed", func(t *testing.T, w *world) {
				for _, pin := range w.pins(t) {
					require.NoError(t, os.Remove(pin))
				}
			}},
			{"the directory is removed", func(t *testing.T, w *world) {
				require.NoError(t, os.RemoveAll(filepath.Join(w.bpffs, "sidestep")))
			}},
			{"bpffs is unmounted", func(t *testing.T, w *world) {
				require.NoError(t, unix.Unmount(w.bpffs, 0))
			}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				a := w.start(t, "agent")
				before := w.attached(t)
				tc.wipe(t, w)
				require.Empty(t, w.pins(t))
				assert.Equal(t, "agent", w.ask(t, w.pod.IP4), "the agent still holds the link")
				require.NoError(t, a.program.Attach(w.pod))
				assert.Equal(t, "agent", w.ask(t, w.pod.IP4))
				assert.Len(t, w.pins(t), w.hooks(t))
				assert.Equal(t, before, w.attached(t), "it is the same link")
				tc.wipe(t, w)
				require.NoError(t, a.program.Detach())
				assert.Equal(t, "app", w.ask(t, w.pod.IP4), "it lets go without a pin, too")
				assert.Empty(t, w.attached(t))
				require.NoError(t, a.program.Attach(w.pod))
				assert.Equal(t, "agent", w.ask(t, w.pod.IP4), "it can be attached again")
				require.NoError(t, a.program.Detach())
			})
		}
	})
}

func TestReadOnlyBPFFSIsAnError(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		a := w.start(t, "agent")
		require.NoError(t, a.program.Detach())
		require.NoError(t, unix.Mount("", w.bpffs, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		assert.ErrorIs(t, a.program.Attach(w.pod), unix.EROFS)
		assert.Equal(t, "app", w.ask(t, w.pod.IP4))
		assert.Empty(t, w.attached(t))
		require.NoError(t, unix.Mount("", w.bpffs, "", unix.MS_REMOUNT, ""))
		require.NoError(t, a.program.Attach(w.pod))
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4))
	})
}

func TestRubbishAmongThePins(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		dir := filepath.Join(w.bpffs, "sidestep", "node_example")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "nonsense"), 0o700))
		rubbish, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		require.NoError(t, err)
		defer rubbish.Close()
		for _, name := range []string{"foo", "12", "12-", "-12", "12-13-14", "x-y",
			fmt.Sprintf("%d-1", w.pod.Inode()), "4-1", fmt.Sprintf("%d-1-tcx-1", w.pod.Inode()),
			fmt.Sprintf("%d-1-clsact-1-made", w.pod.Inode()), "1-2-tcx-x", "1-2-none-3",
			"1-2-clsact-3-mad", "4-1-tcx-3", "4-1-clsact-3"} {
			again, err := rubbish.Clone()
			require.NoError(t, err)
			require.NoError(t, again.Pin(filepath.Join(dir, name)), name)
			require.NoError(t, again.Close())
		}
		a := w.start(t, "agent")
		assert.Equal(t, "agent", w.ask(t, w.pod.IP4), "a map under the name of the pod's pin was replaced")
		require.NoError(t, a.node.Sweep(func(uint64) bool { return true }))
		for _, name := range []string{"4-1", "4-1-tcx-3", "4-1-clsact-3"} {
			assert.NoFileExists(t, filepath.Join(dir, name),
				"what has the name of a pin and pins nothing is swept")
		}
		assert.FileExists(t, filepath.Join(dir, "foo"), "names of other versions are left alone")
		require.NoError(t, a.program.Detach())
		require.NoError(t, steer.Purge(w.bpffs, steer.WithProc(w.node.Proc())))
		w.nothingLeft(t)
	})
}

func TestSweep(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		w.start(t, "first").kill(t)
		other := &world{node: w.node, pod: w.node.NewPod(t), bpffs: w.bpffs, datapath: w.datapath}
		other.start(t, "first").kill(t)
		require.Len(t, w.pins(t), 2*w.hooks(t))
		next := w.newNode()
		defer next.Close()
		require.NoError(t, next.Sweep(func(inode uint64) bool { return inode == w.pod.Inode() }))
		assert.Len(t, w.pins(t), w.hooks(t), "only what is to be kept is kept")
		assert.Empty(t, other.attached(t))
		require.NoError(t, w.app.Close())
		w.pod.Delete()
		assert.Eventually(t, func() bool {
			return next.Sweep(func(uint64) bool { return true }) == nil && len(w.pins(t)) == 0
		}, 30*time.Second, 10*time.Millisecond,
			"the pin of a namespace that is gone is removed whatever is to be kept")
		assert.Empty(t, w.attached(t))
	})
}

func TestPurge(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		w.start(t, "agent").kill(t)
		require.NoError(t, steer.Purge(w.bpffs, steer.WithProc(w.node.Proc())))
		w.nothingLeft(t)
		require.NoError(t, steer.Purge(w.bpffs, steer.WithProc(w.node.Proc())), "there is nothing to purge")
	})
}
