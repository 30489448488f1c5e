// SPDX-License-Identifier: Apache-2.0

package privilege_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/privilege"
)

// envNarrow turns the test's program into one that narrows itself and tries what is left.
const envNarrow = "SIDESTEP_TEST_NARROW"

func TestMain(m *testing.M) {
	if uses := os.Getenv(envNarrow); uses != "" {
		if err := beNarrow(uses); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beNarrow tries all calls on a thread that was there before the filter, and prints what each gave.
func beNarrow(text string) error {
	var uses privilege.Uses
	if err := json.Unmarshal([]byte(text), &uses); err != nil {
		return err
	}
	filtered, results := make(chan struct{}), make(chan map[string]string)
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(started)
		<-filtered
		all := map[string]string{}
		for name, call := range calls() {
			all[name] = fmt.Sprint(call())
		}
		results <- all
	}()
	<-started
	if err := privilege.Narrow(uses); err != nil {
		return err
	}
	close(filtered)
	return json.NewEncoder(os.Stdout).Encode(<-results)
}

// raw makes a system call with arguments that would do no harm.
func raw(number uintptr, args ...uintptr) func() error {
	return func() error {
		a := append(args, make([]uintptr, 6-len(args))...)
		if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

const high = 1 << 32 // a bit that the kernel does not look at

var (
	dot   = []byte(".\x00")
	other = os.Getppid()
	iov   [8]byte
)

// denied are calls that nobody who has taken over the node agent can make. Most would fail without a
// filter, too, but with another error.
var denied = map[string]func() error{
	"start a program":                    raw(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&dot[0]))),
	"start a process":                    raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|1<<63),
	"start a process with clone3":        raw(unix.SYS_CLONE3),
	"attach to another process":          raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(other)),
	"write another process's memory":     raw(unix.SYS_PROCESS_VM_WRITEV, uintptr(other), 0, 0, 0, 0),
	"take another process's files":       raw(unix.SYS_PIDFD_GETFD, ^uintptr(0)),
	"signal another process":             raw(unix.SYS_KILL, uintptr(other), 0),
	"signal another process's thread":    raw(unix.SYS_TGKILL, uintptr(other), uintptr(other), 0),
	"enter a mount namespace":            raw(unix.SYS_SETNS, ^uintptr(0), unix.CLONE_NEWNS),
	"enter whatever namespace":           raw(unix.SYS_SETNS, ^uintptr(0), 0),
	"enter a mount namespace, disguised": raw(unix.SYS_SETNS, ^uintptr(0), unix.CLONE_NEWNS|high),
	"make a user namespace":              raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
	"open a map by its ID":               raw(unix.SYS_BPF, unix.BPF_MAP_GET_FD_BY_ID),
	"open a map by its ID, disguised":    raw(unix.SYS_BPF, unix.BPF_MAP_GET_FD_BY_ID|high),
	"open a program by its ID":           raw(unix.SYS_BPF, unix.BPF_PROG_GET_FD_BY_ID),
	"attach to a tracepoint":             raw(unix.SYS_BPF, unix.BPF_RAW_TRACEPOINT_OPEN),
	"open a packet socket":               raw(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW),
	"open a crypto socket":               raw(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET),
	"mount something writable":           raw(unix.SYS_FSMOUNT, ^uintptr(0), 0, 0),
	"move a mount":                       raw(unix.SYS_MOVE_MOUNT),
	"unmount":                            raw(unix.SYS_UMOUNT2),
	"change the root":                    raw(unix.SYS_CHROOT),
	"open a file by its handle":          raw(unix.SYS_OPEN_BY_HANDLE_AT),
	"map executable memory":              raw(unix.SYS_MMAP, 0, 4096, unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON),
	"load a module":                      raw(unix.SYS_FINIT_MODULE, ^uintptr(0)),
	"load another kernel":                raw(unix.SYS_KEXEC_LOAD),
	"reboot":                             raw(unix.SYS_REBOOT),
	"swap":                               raw(unix.SYS_SWAPON),
	"read keys":                          raw(unix.SYS_KEYCTL),
	"handle page faults":                 raw(unix.SYS_USERFAULTFD),
	"count events":                       raw(unix.SYS_PERF_EVENT_OPEN),
	"make system calls through a ring":   raw(unix.SYS_IO_URING_SETUP),
	"set the clock":                      raw(unix.SYS_CLOCK_SETTIME, ^uintptr(0)>>1),
	"make a device":                      raw(unix.SYS_MKNODAT),
}

// mountCall and environmentCall are denied to a node agent that does not use them. They fail
// otherwise, too, but with another error.
var (
	mountCall       = raw(unix.SYS_MOUNT)
	environmentCall = func() error { return readOwnMemory() }
)

// allowed are what the node agent does.
var allowed = map[string]func() error{
	"enter a network namespace": func() error {
		return enter("/proc/thread-self/ns/net", unix.CLONE_NEWNET)
	},
	"enter a cgroup namespace": func() error {
		return enter("/proc/thread-self/ns/cgroup", unix.CLONE_NEWCGROUP)
	},
	"make a map": func() error {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			return err
		}
		return m.Close()
	},
	"speak netlink": func() error {
		_, err := netlink.LinkList()
		return err
	},
	"open a raw socket": func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"see the control groups": func() error {
		ctx, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(ctx)
		if err := unix.FsconfigCreate(ctx); err != nil {
			return err
		}
		fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"start threads": func() error {
		done := make(chan struct{})
		for range 8 {
			go func() {
				runtime.LockOSThread() // and never unlock: the thread ends
				done <- struct{}{}
			}()
		}
		for range 8 {
			<-done
		}
		return nil
	},
	// The last one, since the thread is elsewhere then.
	"make a network namespace": func() error {
		failed := make(chan error)
		go func() {
			runtime.LockOSThread()
			failed <- unix.Unshare(unix.CLONE_NEWNET)
		}()
		return <-failed
	},
}

func enter(path string, kind int) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), kind)
}

func readOwnMemory() error {
	var to [8]byte
	local := unix.Iovec{Base: &to[0]}
	local.SetLen(len(to))
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&iov[0])), Len: len(iov)}
	_, err := unix.ProcessVMReadv(os.Getpid(), []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	return err
}

// calls are all of them.
func calls() map[string]func() error {
	all := map[string]func() error{"mount": mountCall, "read memory": environmentCall}
	for _, some := range []map[string]func() error{denied, allowed} {
		for name, call := range some {
			all[name] = call
		}
	}
	return all
}

// narrowed returns what each call gives in a process that has narrowed itself.
func narrowed(t *testing.T, uses privilege.Uses) map[string]string {
	t.Helper()
	testnet.RequireRoot(t)
	text, err := json.Marshal(uses)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envNarrow+"="+string(text))
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	require.NoError(t, err)
	var results map[string]string
	require.NoError(t, json.Unmarshal(out, &results))
	return results
}

func TestWhatTheNodeAgentNeverDoesIsDeniedOnThreadsThatWereThereBefore(t *testing.T) {
	results := narrowed(t, privilege.Uses{Mount: true, Environment: true})
	for name := range denied {
		want := unix.EPERM
		if name == "start a process with clone3" {
			want = unix.ENOSYS
		}
		assert.Equal(t, want.Error(), results[name], name)
	}
}

func TestWhatTheNodeAgentDoesGoesOn(t *testing.T) {
	results := narrowed(t, privilege.Uses{Mount: true, Environment: true})
	for name := range allowed {
		assert.Equal(t, "<nil>", results[name], name)
	}
	assert.NotEqual(t, unix.EPERM.Error(), results["mount"])
	assert.Equal(t, "<nil>", results["read memory"])
}

func TestWhatIsTurnedOffIsDenied(t *testing.T) {
	results := narrowed(t, privilege.Uses{})
	assert.Equal(t, unix.EPERM.Error(), results["mount"])
	assert.Equal(t, unix.EPERM.Error(), results["read memory"])
}

// Of most calls above, root's fail with another error. So EPERM is the filter's.
func TestTheDeniedCallsAreNotDeniedWithoutTheFilter(t *testing.T) {
	testnet.RequireRoot(t)
	for _, name := range []string{"enter a mount namespace", "open a map by its ID", "mount something writable",
		"signal another process", "map executable memory", "take another process's files", "open a packet socket"} {
		assert.NotErrorIs(t, denied[name](), unix.EPERM, name)
	}
}

func TestFeaturesThatLackACapabilityAreNamed(t *testing.T) {
	testnet.RequireRoot(t)
	lacking := func(features privilege.Features) (names []string) {
		t.Helper()
		all, err := privilege.Lacking(features)
		require.NoError(t, err)
		for _, l := range all {
			names = append(names, l.Feature+" "+l.Capability)
		}
		return names
	}
	assert.Empty(t, lacking(privilege.All))
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: this thread alone drops them
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if !assert.NoError(t, unix.Capset(&header, &make([]unix.CapUserData, 2)[0])) {
			return
		}
		assert.True(t, slices.Contains(lacking(privilege.All), "UDP CAP_NET_RAW"))
		assert.True(t, slices.Contains(lacking(privilege.All), "older connections CAP_NET_ADMIN"))
		for _, name := range lacking(privilege.Features{}) {
			assert.NotContains(t, name, "CAP_NET")
		}
	}()
	<-done
}
