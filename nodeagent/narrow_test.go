// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
)

// mountNarrow gives agents no more of bpffs than their own directory, as the chart does. It returns
// the whole one.
func (w *world) mountNarrow(t *testing.T) (all string) {
	t.Helper()
	all = w.bpffs
	w.bpffs = t.TempDir()
	for _, dir := range []string{all, w.bpffs} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, "sidestep"), 0o755))
	}
	own := filepath.Join(w.bpffs, "sidestep")
	require.NoError(t, unix.Mount(filepath.Join(all, "sidestep"), own, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(own, unix.MNT_DETACH)) })
	return all
}

func TestAgentThatSeesItsOwnDirectoryOfBPFFSAloneFollowsOneThatSeesAllOfIt(t *testing.T) {
	w := newWorld(t)
	older := w.spawn(t) // of a version that mounts all of bpffs
	w.steering(t, w.assign(w.wants()))
	l := newLoad(t, w, 2)
	all := w.bpffs
	w.bpffs = t.TempDir()
	own := filepath.Join(w.bpffs, "sidestep")
	require.NoError(t, os.Mkdir(own, 0o755))
	require.NoError(t, unix.Mount(filepath.Join(all, "sidestep"), own, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(own, unix.MNT_DETACH)) })
	pins := func() string {
		paths, err := filepath.Glob(all + "/sidestep/node-1/*")
		require.NoError(t, err)
		return strings.Join(paths, " ")
	}
	before := pins()
	younger := w.spawn(t)
	require.Eventually(t, func() bool { now := pins(); return now != "" && now != before },
		30*time.Second, 20*time.Millisecond, "the younger one has taken the pin over")
	require.NoError(t, older.Process.Signal(syscall.SIGTERM))
	require.NoError(t, older.end())
	w.expect(t, "me", "laptop")
	l.stop(t)
	younger.kill(t)
	w.expect(t, "me", "app")
	w.spawn(t)
	w.eventually(t, "me", "laptop")
}

// An agent of the version before removes the directory when nothing is pinned.
func TestTheMountedDirectoryIsNotRemovedByAnAgentThatSeesAllOfBPFFS(t *testing.T) {
	w := newWorld(t)
	all := w.mountNarrow(t)
	w.spawn(t)
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(all, "sidestep/mounted"))
		return err == nil
	}, 30*time.Second, 20*time.Millisecond)
	assert.ErrorIs(t, os.Remove(filepath.Join(all, "sidestep")), unix.ENOTEMPTY)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
}

func TestAgentEndsWhenItsMountedDirectoryIsRemoved(t *testing.T) {
	w := newWorld(t)
	all := w.mountNarrow(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	require.NoError(t, os.RemoveAll(filepath.Join(all, "sidestep")))
	assert.ErrorContains(t, p.end(), "exit status 1")
	w.expect(t, "me", "app")
}

// With all optional features off, the kernels that need fewest capabilities need two.
func TestAgentWithoutItsOptionalFeaturesNeedsTwoCapabilities(t *testing.T) {
	testnet.RequireLinux(t, bpf.Requirement{Feature: "steering without CAP_NET_ADMIN", Linux: "6.9"})
	w := newWorld(t)
	w.mountNarrow(t)
	w.args = []string{"--environment=false", "--udp=false", "--takeover=false"}
	p := w.spawn(t, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)
	want := w.wants()
	want.UdpTargets = []*agentpb.Target{{Port: 53, Rules: []*agentpb.Rule{{InterceptUid: "i-2", Connected: true}}}}
	w.assign(want)
	w.await(t, "what is off", func(r *agentpb.Report) bool {
		said := 0
		for _, at := range r.GetTargets() {
			switch at.GetInterceptUid() {
			case "i-1":
				if at.GetSteering() && strings.Contains(at.GetMessage(), "nodeagent.features.takeover") {
					said++
				}
			case "i-2":
				if at.GetFailed() && !at.GetSteering() && strings.Contains(at.GetMessage(), "nodeagent.features.udp") {
					said++
				}
			}
		}
		return said == 2
	})
	w.expect(t, "me", "laptop")
	w.expectIntroduction(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	require.NoError(t, err)
	assert.Contains(t, string(status), "Seccomp:\t2", "a filter")
}

func TestUDPIsSteeredWithoutCapNetAdmin(t *testing.T) {
	testnet.RequireLinux(t, bpf.Requirement{Feature: "steering without CAP_NET_ADMIN", Linux: "6.9"})
	w := newWorld(t)
	w.args = []string{"--takeover=false"}
	w.spawn(t, unix.CAP_NET_ADMIN)
	want := w.wants()
	want.UdpTargets = []*agentpb.Target{{Port: 53, Rules: []*agentpb.Rule{{InterceptUid: "i-2", Connected: true}}}}
	w.steering(t, w.assign(want))
}
