// SPDX-License-Identifier: Apache-2.0

package tcpstats_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/cgroup"
	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

// From linux/bpf.h.
const (
	opPassiveEstablished = 5
	opState              = 10
	opRTT                = 12
	wantsRTT             = 1 << 3
	fieldOp              = 0  // offsets in struct bpf_sock_ops
	fieldFlags           = 84 // bpf_sock_ops_cb_flags
	ops                  = 16
	allowOverride        = 1 // BPF_F_ALLOW_OVERRIDE
)

// foreign is somebody else's sockops program, which asks to be told of round trips and counts what
// it is called for.
func foreign(t testing.TB) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	called, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: ops})
	require.NoError(t, err)
	t.Cleanup(func() { _ = called.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R7, asm.R6, fieldOp, asm.Word),
			asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word),
			asm.LoadMapPtr(asm.R1, called.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "asked"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.JNE.Imm(asm.R7, opPassiveEstablished, "asked").WithSymbol("established"),
			asm.LoadMem(asm.R2, asm.R6, fieldFlags, asm.Word),
			asm.Or.Imm(asm.R2, wantsRTT),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnSockOpsCbFlagsSet.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("asked"),
			asm.Return(),
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p, called
}

func calls(t testing.TB, called *ebpf.Map, op uint32) (n uint64) {
	t.Helper()
	require.NoError(t, called.Lookup(op, &n))
	return n
}

func attachTo(t testing.TB, dir string, p *ebpf.Program) {
	t.Helper()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupSockOps, Program: p})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

func TestProgramsOfOthersGoOnWorking(t *testing.T) {
	for name, set := range map[string]struct{ before, above bool }{
		"attached before": {before: true}, "attached after": {},
		"attached to a group above": {before: true, above: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.start(t, ":8080")
			dir := filepath.Dir(w.cgroup) // the pod's
			if set.above {
				dir = filepath.Dir(dir)
			}
			p, called := foreign(t)
			if set.before {
				attachTo(t, dir, p)
			}
			h := w.hold(t)
			if !set.before {
				attachTo(t, dir, p)
			}
			w.count(t, h, port)
			w.exchange(t, many, order{In: 100, Out: bytes, Mode: clientFirst}, w.outside, w.pod.IP4, port)
			becomes(t, h, port, ways{Direct: each(many, 100, bytes)})
			assert.EqualValues(t, many, calls(t, called, opPassiveEstablished))
			assert.Positive(t, calls(t, called, opRTT), "it has what it asked for")
			before := calls(t, called, opState)
			require.NoError(t, h.Close())
			w.exchange(t, many, order{In: 100, Out: 100, Mode: clientFirst}, w.outside, w.pod.IP4, port)
			assert.EqualValues(t, 2*many, calls(t, called, opPassiveEstablished))
			assert.Equal(t, before, calls(t, called, opState),
				"it is not told any longer what it did not ask for")
		})
	}
}

// A program that is attached the old way, to be overridden, would be by ours.
func TestProgramsThatWouldBeOverriddenAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.start(t, ":8080")
	p, called := foreign(t)
	above, err := os.Open(filepath.Dir(filepath.Dir(w.cgroup)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = above.Close() })
	require.NoError(t, link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(above.Fd()), Program: p, Attach: ebpf.AttachCGroupSockOps, Flags: allowOverride,
	}))
	t.Cleanup(func() {
		assert.NoError(t, link.RawDetachProgram(link.RawDetachProgramOptions{
			Target: int(above.Fd()), Program: p, Attach: ebpf.AttachCGroupSockOps,
		}))
	})
	h, err := w.node.Attach(w.pod.Namespace, w.pod.UID, w.processes(t))
	require.NoError(t, err)
	defer h.Close()
	assert.ErrorIs(t, h.Missing(), cgroup.ErrDisplaced)
	w.exchange(t, 1, order{In: 100, Out: 100, Mode: clientFirst}, w.outside, w.pod.IP4, port)
	assert.EqualValues(t, 1, calls(t, called, opPassiveEstablished))
}

// attached counts the programs at a control group.
func attached(t testing.TB, dir string) int {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	got, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: ebpf.AttachCGroupSockOps})
	require.NoError(t, err)
	return len(got.Programs)
}

func TestKilledAgentLeavesNothingBehind(t *testing.T) {
	w := newWorld(t)
	w.start(t, ":8080")
	dir := filepath.Dir(w.cgroup)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(),
		fmt.Sprintf("%s=%s %s %s %s", envAgent, w.proc, w.pod.UID, w.pod.IP4, w.processes(t)[0]))
	cmd.Stderr = t.Output()
	said, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, w.pod.Do(cmd.Start))
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(said).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "counting\n", line)
	require.Equal(t, 1, attached(t, dir))
	older, err := w.dial(t.Context(), w.outside, w.pod.IP4, port)
	require.NoError(t, err)
	defer older.Close()

	require.NoError(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, said)
	_ = cmd.Wait()
	require.Eventually(t, func() bool { return attached(t, dir) == 0 }, 20*time.Second, 5*time.Millisecond)
	h := w.hold(t)
	w.count(t, h, port)
	require.NoError(t, order{In: 100, Out: 200, Mode: appFirst}.exchange(older), "the connection lives on")
	w.exchange(t, many, order{In: 100, Out: 200, Mode: appFirst}, w.outside, w.pod.IP4, port)
	becomes(t, h, port, ways{Direct: each(many, 100, 200)})
}

// beAgent counts until it is killed.
func beAgent() error {
	var proc, uid, ip, pid string
	if _, err := fmt.Sscan(os.Getenv(envAgent), &proc, &uid, &ip, &pid); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	here, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	h, err := tcpstats.New(proc).Attach(here, uid, []string{pid})
	if err == nil {
		err = errors.Join(h.Missing(), h.Add(netip.AddrPortFrom(netip.MustParseAddr(ip), port)))
	}
	if err != nil {
		return err
	}
	fmt.Println("counting")
	select {}
}
