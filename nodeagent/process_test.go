// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent"
)

// capabilities is all that the chart gives to the node agent. Steering needs CAP_NET_ADMIN before
// Linux 6.9 only, ending open connections always does; CAP_NET_RAW gives packets back that were
// held.
var capabilities = []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}

// Set in the environment, these turn the test's program into the node agent.
const (
	envConfine = "SIDESTEP_TEST_CONFINE" // start the node agent with these capabilities (JSON)
	envAgent   = "SIDESTEP_TEST_AGENT"   // be the node agent
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envConfine) != "":
		confine()
	case os.Getenv(envSidecar) != "":
		fmt.Fprintln(os.Stderr, "sidecar:", beSidecar())
		os.Exit(1)
	case os.Getenv(envAgent) != "":
		os.Exit(nodeagent.Main(nodeagent.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr}))
	}
	leave, err := testnet.Secede() // since programs at the control group are counted
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a control group for the tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	leave()
	os.Exit(code)
}

// lockable is how much memory the node agent may lock, in bytes. Containers may often lock no more
// than 64 KiB.
const lockable = 16 << 10

// confine starts this program again as root with few capabilities, as a container runtime does.
func confine() {
	runtime.LockOSThread()
	var keep []int
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "confine:", err)
			os.Exit(3)
		}
	}
	fail(json.Unmarshal([]byte(os.Getenv(envConfine)), &keep))
	for capability := range unix.CAP_LAST_CAP + 1 {
		if !slices.Contains(keep, capability) {
			fail(unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0))
		}
	}
	fail(unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: lockable, Max: lockable}))
	fail(os.Unsetenv(envConfine))
	fail(os.Setenv(envAgent, "1"))
	fail(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// process is a node agent that can be killed.
type process struct {
	*exec.Cmd
	http string
	end  func() error // waits for the end
}

// spawn starts a node agent as a process of its own, with the capabilities that it has in a cluster
// without some of them.
func (w *world) spawn(t *testing.T, without ...int) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &process{http: l.Addr().String()}
	require.NoError(t, l.Close())
	p.Cmd = exec.Command("/proc/self/exe", "--manager", w.address, "--ca-file", w.caFile,
		"--token-file", w.tokenFile,
		"--node", "node-1", "--bpffs", w.bpffs, "--proc", w.node.Proc(), "--http-address", p.http,
		"--drain", w.drain.String(), "--log-level", "debug")
	p.Args = append(p.Args, w.args...)
	gives := slices.Clone(capabilities)
	if !testnet.KernelAtLeast(t, 5, 11) {
		gives = append(gives, unix.CAP_SYS_RESOURCE) // as the chart does where it is told so
	}
	keep, err := json.Marshal(slices.DeleteFunc(gives, func(c int) bool { return slices.Contains(without, c) }))
	require.NoError(t, err)
	p.Env = append(append(os.Environ(), w.env...), envConfine+"="+string(keep))
	p.Stdout, p.Stderr = w, w
	require.NoError(t, p.Start())
	p.end = sync.OnceValue(p.Wait)
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.end()
	})
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.Process.Kill())
	_ = p.end()
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.assign(w.wants())
	for name, capability := range map[string]int{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
		"CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE} {
		p := w.spawn(t, capability)
		w.await(t, name, func(r *agentpb.Report) bool {
			return len(r.GetTargets()) == 1 && strings.Contains(r.GetTargets()[0].GetMessage(), name)
		})
		w.expect(t, "me", "app")
		p.kill(t)
	}
}

// As with a kernel that was built without CONFIG_INET_DIAG_DESTROY.
func TestAgentThatCannotEndConnectionsSteersAndSaysSo(t *testing.T) {
	t.Parallel()
	testnet.RequireLinux(t, bpf.Requirement{Feature: "steering without CAP_NET_ADMIN", Linux: "6.9"})
	w := newWorld(t)
	p := w.spawn(t, unix.CAP_NET_ADMIN)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	_, metrics := fetch(t, "http://"+p.http+"/metrics")
	for _, line := range []string{
		`takeover_connections_total{reason="request"} 0`,
		`takeover_connections_total{reason="existing"} 0`, `takeover_watched_connections 0`,
		`takeover_held_packets_total 0`, `takeover_released_packets_total 0`,
		`takeover_left_requests_total{reason="late"} 0`,
		`takeover_left_requests_total{reason="no_room"} 0`,
		`takeover_left_requests_total{reason="not_ended"} 0`,
	} {
		assert.Contains(t, metrics, "\nsidestep_nodeagent_"+line+"\n")
	}
	w.await(t, "the reason", func(r *agentpb.Report) bool {
		t := r.GetTargets()
		return len(t) == 1 && t[0].GetSteering() &&
			strings.Contains(t[0].GetMessage(), "that are open already stay with the app") &&
			strings.Contains(t[0].GetMessage(), "CAP_NET_ADMIN")
	})
}

// Before Linux 5.11 the memory of maps and programs counts as locked memory.
func TestLimitOnLockedMemory(t *testing.T) {
	w := newWorld(t)
	revision := w.assign(w.wants())
	limited := w.spawn(t, unix.CAP_SYS_RESOURCE)
	if !testnet.KernelAtLeast(t, 5, 11) {
		w.await(t, "what to do", func(r *agentpb.Report) bool {
			return len(r.GetTargets()) == 1 &&
				strings.Contains(r.GetTargets()[0].GetMessage(), "nodeagent.beforeLinux511=true")
		})
		w.expect(t, "me", "app")
		limited.kill(t)
		w.spawn(t) // with the capability
	}
	w.steering(t, revision)
	w.expect(t, "me", "laptop")
}

func TestAgentWithoutFileDescriptorsLeavesConnectionsToTheApp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Process.Pid))
	require.NoError(t, err)
	var before unix.Rlimit
	require.NoError(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, nil, &before))
	few := unix.Rlimit{Cur: uint64(len(open)), Max: before.Max}
	require.NoError(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, &few, nil))
	waiting, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, appPort))
	require.NoError(t, err)
	defer waiting.Close()
	require.Eventually(t, func() bool {
		got, err := w.get(w.pod.IP4, "me")
		return err == nil && got == "app"
	}, 30*time.Second, 100*time.Millisecond)
	require.NoError(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, &before, nil))
	w.eventually(t, "me", "laptop")
}

func TestKilledAgentLeavesConnectionsToTheAppUntilTheNextOneStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	first.kill(t)
	w.expect(t, "me", "app")
	w.expect(t, "", "app")
	restarted := time.Now()
	second := w.spawn(t)
	w.eventually(t, "me", "laptop")
	assert.Less(t, time.Since(restarted), 20*time.Second)
	w.expect(t, "", "app")
	require.NoError(t, second.Process.Signal(syscall.SIGTERM))
	require.NoError(t, second.end())
	w.expect(t, "me", "app")
	w.nothingLeft(t)
}

func TestKilledAgentFailsNoNewConnection(t *testing.T) {
	w := newWorld(t)
	agent := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	agent.kill(t)
	l := newLoad(t, w, 4)
	for range 3 {
		agent := w.spawn(t)
		w.eventually(t, "me", "laptop")
		require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
		require.NoError(t, agent.end())
	}
	l.stop(t)
}

func TestStoppedAgentLeavesConnectionsToTheApp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
	stopped := time.Now()
	require.Eventually(t, func() bool {
		got, err := w.get(w.pod.IP4, "")
		return err == nil && got == "app"
	}, 30*time.Second, 10*time.Millisecond)
	assert.Less(t, time.Since(stopped), 20*time.Second)
	w.expect(t, "me", "app")
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	w.eventually(t, "me", "laptop")
}

func TestPinsOfAKilledAgentAreSweptByTheNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	p.kill(t)
	assert.DirExists(t, w.bpffs+"/sidestep/node-1")
	w.assign()
	w.spawn(t)
	require.Eventually(t, func() bool {
		_, err := os.Stat(w.bpffs + "/sidestep")
		return os.IsNotExist(err)
	}, 30*time.Second, 20*time.Millisecond)
}

func TestPurgeCommand(t *testing.T) {
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	p.kill(t)
	var out strings.Builder
	require.Zero(t, nodeagent.Main(nodeagent.Env{Args: []string{"purge", "--bpffs", w.bpffs},
		Stdout: &out, Stderr: &out}), out.String())
	w.nothingLeft(t)
}

func TestHealthReadinessAndMetrics(t *testing.T) {
	w := newWorld(t)
	p := w.spawn(t)
	get := func(path string) (int, string) { return fetch(t, "http://"+p.http+path) }
	require.Eventually(t, func() bool { code, _ := get("/healthz"); return code == 200 },
		30*time.Second, 20*time.Millisecond)
	code, why := get("/readyz")
	assert.Equal(t, 503, code)
	assert.Contains(t, why, "no assignment")
	w.steering(t, w.assign(w.wants()))
	require.Eventually(t, func() bool { code, _ := get("/readyz"); return code == 200 }, 30*time.Second,
		20*time.Millisecond)
	w.expect(t, "me", "laptop")
	_, metrics := get("/metrics")
	for _, line := range []string{
		`sidestep_nodeagent_attached 1`,
		`sidestep_nodeagent_pods{steered="true"} 1`,
		`sidestep_nodeagent_claims{steering="true"} 1`,
		`sidestep_nodeagent_lookups_total{outcome="steered",pod="shop/orders-0"}`,
	} {
		assert.Contains(t, metrics, line)
	}
	code, _ = get("/debug/pprof/")
	assert.Equal(t, 404, code, "profiles are served on request only")
}

func TestDeletedPodIsLetGoAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.spawn(t)
	other := w.node.NewPod(t)
	serve(t, other)
	wanted := wants(other)
	wanted.Name = "orders-1"
	w.steering(t, w.assign(w.wants(), wanted))
	require.NoError(t, w.app.Close())
	gone := testnet.Watch(t, w.pod)
	inode := w.pod.Inode()
	w.pod.Delete()
	if !assert.Eventually(t, gone, time.Minute, 20*time.Millisecond,
		"something keeps the namespace of the deleted pod alive") {
		t.Fatal("it is held by", holders(t, inode))
	}
	got, err := get(w.node, other.IP4, "me")
	require.NoError(t, err)
	assert.Equal(t, "laptop", got, "the other pod is still steered")
}

// holders are the files and threads of processes that keep a network namespace alive. Sockets
// cannot be told by their namespace.
func holders(t *testing.T, inode uint64) (all []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/fd/*", "/proc/[0-9]*/task/*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			if to, err := os.Readlink(path); err == nil && to == fmt.Sprintf("net:[%d]", inode) {
				all = append(all, path)
			}
		}
	}
	return all
}

func TestConnectionsOfADeletedPodAreClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.spawn(t)
	empty := w.assign()
	w.await(t, "nothing assigned", func(r *agentpb.Report) bool { return r.GetRevision() == empty })
	before := p.sockets(t)
	w.steering(t, w.assign(w.wants()))
	for range 5 {
		open, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, appPort))
		require.NoError(t, err)
		defer open.Close()
	}
	require.Eventually(t, func() bool { return p.sockets(t) >= before+2+5 }, 30*time.Second,
		20*time.Millisecond)
	w.pod.Delete()
	require.Eventually(t, func() bool { return p.sockets(t) == before }, 30*time.Second, 20*time.Millisecond)
}

// sockets counts the open sockets of the node agent.
func (p *process) sockets(t *testing.T) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.Process.Pid)
	fds, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func TestCommandLineErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no node", nil, "--node is missing"},
		{"wrong level", []string{"--node=n", "--log-level=loud"}, "use debug, info, warn or error"},
		{"no certificate authority", []string{"--node=n", "--ca-file=/nowhere/ca.crt"}, "/nowhere/ca.crt"},
		{"unknown flag", []string{"--nope"}, "unknown flag"},
		{"argument", []string{"nope"}, "unknown command"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			assert.Equal(t, 1, nodeagent.Main(nodeagent.Env{Args: tc.args, Stdout: &out, Stderr: &out}))
			assert.Contains(t, out.String(), "sidestep-nodeagent: error: ")
			assert.Contains(t, out.String(), tc.want)
		})
	}
}
