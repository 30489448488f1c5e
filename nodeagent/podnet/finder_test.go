// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/procs"
)

const uid = "12345678-9abc-def0-1234-56789abcdef0"

// proc is a /proc with processes.
type proc struct{ fstest.MapFS }

func (p proc) add(pid, cgroup string, started, inode uint64) proc {
	p.MapFS[pid+"/cgroup"] = &fstest.MapFile{Data: []byte(cgroup)}
	p.MapFS[pid+"/stat"] = &fstest.MapFile{Data: []byte(pid + " (a ) b) S" + strings.Repeat(" 1", 18) +
		" " + decimal(started) + " 0 0\n")}
	p.MapFS[pid+"/ns/net"] = &fstest.MapFile{Mode: fs.ModeIrregular, Sys: &syscall.Stat_t{Dev: 4, Ino: inode}}
	return p
}

func decimal(n uint64) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

func finderOf(p proc) *Finder { return &Finder{root: "/proc", proc: procs.FS{FS: p.MapFS}} }

func TestProcessesAreFoundByCgroup(t *testing.T) {
	underscores := strings.ReplaceAll(uid, "-", "_")
	for name, cgroup := range map[string]string{
		"containerd, cgroup v2, systemd driver":  "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + underscores + ".slice/cri-containerd-0123.scope\n",
		"containerd, cgroup v2, cgroupfs driver": "0::/kubepods/besteffort/pod" + uid + "/0123456789\n",
		"guaranteed pod, systemd driver": "0::/kubepods.slice/kubepods-pod" + underscores +
			".slice/cri-containerd-0123.scope\n",
		"cri-o": "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underscores + ".slice/crio-0123.scope/container\n",
		"containerd under systemd without driver": "1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-pod" + underscores + ".slice:cri-containerd:0123\n",
		"seen from a cgroup namespace":            "0::/../../pod" + uid + "/0123\n",
		"hybrid, version 1 lines first": "12:cpu:/kubepods/pod" + uid +
			"/c\n1:name=systemd:/kubepods/pod" + uid + "/c\n0::/\n",
		"a cgroup of the pod itself": "0::/kubepods/pod" + uid + "\n",
		"upper case":                 "0::/kubepods/pod" + strings.ToUpper(uid) + "/c\n",
		"a node that is a pod":       "0::/kubepods/podaaaaaaaa-9abc-def0-1234-56789abcdef0/kubelet/kubepods/pod" + uid + "/c\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := finderOf(proc{fstest.MapFS{}}.add("42", cgroup, 7, 100))
			assert.True(t, f.Alive(uid, netns.ID{Dev: 4, Inode: 100}))
			assert.False(t, f.Alive(uid, netns.ID{Dev: 4, Inode: 101}), "another namespace")
			assert.False(t, f.Alive("00000000-9abc-def0-1234-56789abcdef0",
				netns.ID{Dev: 4, Inode: 100}), "another pod")
		})
	}
}

func TestProcessesOutsideOfPodsAreIgnored(t *testing.T) {
	p := proc{fstest.MapFS{}}.
		add("1", "0::/init.scope\n", 1, 1).
		add("2", "0::/user.slice/pod"+uid+"-not\n", 1, 1).
		add("3", "", 1, 1)
	p.MapFS["self"] = &fstest.MapFile{Mode: fs.ModeSymlink}
	f := finderOf(p)
	require.NoError(t, f.scan())
	assert.Empty(t, f.pods)
}

func TestOldestProcessComesFirst(t *testing.T) {
	cgroup := "0::/kubepods/pod" + uid + "/c\n"
	f := finderOf(proc{fstest.MapFS{}}.add("300", cgroup, 30, 3).add("100", cgroup, 20, 2).add("2000",
		cgroup, 10, 1))
	require.NoError(t, f.scan())
	var pids []string
	for _, p := range f.pods[uid] {
		pids = append(pids, p.pid)
	}
	assert.Equal(t, []string{"2000", "100", "300"}, pids)
}

func TestReusedProcessNumberIsNotThePod(t *testing.T) {
	p := proc{fstest.MapFS{}}.add("42", "0::/kubepods/pod"+uid+"/c\n", 7, 100)
	f := finderOf(p)
	require.True(t, f.Alive(uid, netns.ID{Dev: 4, Inode: 100}))
	p.add("42", "0::/user.slice\n", 8, 100)
	assert.False(t, f.Alive(uid, netns.ID{Dev: 4, Inode: 100}))
}

// A namespace is opened by the PID of a process that belonged to the pod when /proc was last read.
// By then another pod's process may have the PID. It may even have one of the addresses: with host
// networking all pods share the node's.
func TestNamespaceOfAReusedProcessNumberIsNotOpened(t *testing.T) {
	node := testnet.NewNode(t)
	pod, other := node.NewPod(t), node.NewPod(t)
	f := NewFinder(node.Proc())
	find := func() error {
		ns, err := f.Find(pod.UID, []netip.Addr{pod.IP4, other.IP4})
		if err == nil {
			assert.Equal(t, pod.ID(), ns.ID(), "another pod's namespace was opened")
			require.NoError(t, ns.Close())
		}
		return err
	}
	require.NoError(t, find())
	opened := 0
	f.open = func(path string) (*Namespace, error) {
		opened++
		return Open(path)
	}
	// The pod's PID is given to a process of the other one.
	require.NoError(t, os.RemoveAll(filepath.Join(node.Proc(), "1001")))
	require.NoError(t, os.Rename(filepath.Join(node.Proc(), "1002"), filepath.Join(node.Proc(), "1001")))
	assert.ErrorIs(t, find(), ErrNotFound)
	assert.Zero(t, opened)
	assert.Empty(t, f.Processes(pod.UID, pod.ID()))
}

func TestFind(t *testing.T) {
	node := testnet.NewNode(t)
	pod, other := node.NewPod(t), node.NewPod(t)
	f := NewFinder(node.Proc())
	for _, ip := range []netip.Addr{pod.IP4, pod.IP6} {
		ns, err := f.Find(pod.UID, []netip.Addr{ip})
		require.NoError(t, err)
		assert.Equal(t, pod.ID(), ns.ID())
		assert.True(t, f.Alive(pod.UID, ns.ID()))
		require.NoError(t, ns.Close())
	}
	_, err := f.Find(pod.UID, []netip.Addr{other.IP4})
	assert.ErrorIs(t, err, ErrNotFound)
	assert.ErrorContains(t, err, "none of the pod's addresses",
		"a namespace with other addresses is not the pod's")
	_, err = f.Find(uid, []netip.Addr{pod.IP4})
	assert.ErrorIs(t, err, ErrNotFound)
	id := pod.ID()
	pod.Delete()
	assert.Eventually(t, func() bool { return !f.Alive(pod.UID, id) }, 5*scanInterval, scanInterval/10)
}
