// SPDX-License-Identifier: Apache-2.0

package privilege

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Uses are what the node agent does with system calls that it could do without.
type Uses struct {
	Mount       bool // mount(2): it mounts bpffs where the node has none
	Environment bool // process_vm_readv(2): it reads the environment of containers
}

// never are system calls that a node agent does not make. The container runtime's own filter,
// RuntimeDefault, allows many of them to a process with CAP_SYS_ADMIN or CAP_SYS_PTRACE.
// neverHere are those of them that only this architecture has.
var never = []uint32{
	// programs; see clone(2) below
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	// other processes
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE,
	unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KCMP, unix.SYS_TKILL,
	unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET,
	unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETPARAM,
	unix.SYS_SCHED_SETSCHEDULER, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	// file systems; see mount(2) and fsmount(2) below
	unix.SYS_UMOUNT2, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_TREE,
	unix.SYS_OPEN_TREE_ATTR, unix.SYS_FSPICK, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MKNODAT,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_ACCT,
	// the machine
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
	unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_SYSLOG, unix.SYS_VHANGUP, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_PERSONALITY,
	// what exploits of the kernel like; io_uring would also pass system calls by this filter
	unix.SYS_USERFAULTFD, unix.SYS_PERF_EVENT_OPEN, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_KEYCTL, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// bpfCommands are those of bpf(2) that the node agent needs. Those that open programs, maps and
// links of others by their ID are not among them.
var bpfCommands = []uint32{
	unix.BPF_MAP_CREATE, unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM,
	unix.BPF_MAP_GET_NEXT_KEY, unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM, unix.BPF_MAP_FREEZE,
	unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH, unix.BPF_MAP_UPDATE_BATCH,
	unix.BPF_MAP_DELETE_BATCH, unix.BPF_PROG_LOAD, unix.BPF_PROG_BIND_MAP, unix.BPF_PROG_TEST_RUN,
	unix.BPF_PROG_ATTACH, unix.BPF_PROG_DETACH, unix.BPF_PROG_QUERY, unix.BPF_BTF_LOAD,
	unix.BPF_OBJ_PIN, unix.BPF_OBJ_GET, unix.BPF_OBJ_GET_INFO_BY_FD,
	unix.BPF_LINK_CREATE, unix.BPF_LINK_UPDATE, unix.BPF_LINK_DETACH,
}

// rules are all that is denied.
func rules(uses Uses) []rule {
	self := uint32(unix.Getpid())
	all := []rule{
		// The flags of clone3(2) are in memory, where no filter sees them. Where it does not exist, libc
		// starts its threads by clone(2).
		{call: unix.SYS_CLONE3, errno: unix.ENOSYS},
		{call: unix.SYS_CLONE, arg: 0, bits: unix.CLONE_THREAD}, // threads, no processes
		{call: unix.SYS_BPF, arg: 0, only: bpfCommands},
		// the namespaces of pods, and the node's control groups; never a mount or a PID namespace
		{call: unix.SYS_SETNS, arg: 1, only: []uint32{unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP}},
		{call: unix.SYS_UNSHARE, arg: 0, only: []uint32{unix.CLONE_NEWNET}},
		{call: unix.SYS_SOCKET, arg: 0, only: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}},
		// a read-only mount of the control groups, which appears nowhere
		{call: unix.SYS_FSMOUNT, arg: 2, bits: unix.MOUNT_ATTR_RDONLY},
		// signals to itself, with which Go's runtime interrupts goroutines
		{call: unix.SYS_KILL, arg: 0, only: []uint32{self}},
		{call: unix.SYS_TGKILL, arg: 0, only: []uint32{self}},
		// no code but the program's
		{call: unix.SYS_MMAP, arg: 2, not: unix.PROT_EXEC},
		{call: unix.SYS_MPROTECT, arg: 2, not: unix.PROT_EXEC},
		{call: unix.SYS_PKEY_MPROTECT, arg: 2, not: unix.PROT_EXEC},
	}
	if !uses.Mount {
		all = append(all, rule{call: unix.SYS_MOUNT})
	}
	if !uses.Environment {
		all = append(all, rule{call: unix.SYS_PROCESS_VM_READV})
	}
	for _, call := range append(neverHere, never...) {
		all = append(all, rule{call: call})
	}
	return all
}

// rule denies a system call, or what differs from what the rule says of an argument.
type rule struct {
	call  uint32
	errno unix.Errno // instead of EPERM

	arg  uint32
	only []uint32 // the values that it may have
	bits uint32   // one of these it must have
	not  uint32   // none of these it may have
}

// Offsets in struct seccomp_data, on machines whose lower bytes come first.
const (
	offsetOfCall = 0
	offsetOfArch = 4
	offsetOfArgs = 16
)

// assemble returns instructions that end in the rule's verdict, or go on behind the last of them.
func (r rule) assemble() []bpf.Instruction {
	errno := r.errno
	if errno == 0 {
		errno = unix.EPERM
	}
	load := func(half uint32) bpf.Instruction {
		return bpf.LoadAbsolute{Off: offsetOfArgs + 8*r.arg + half, Size: 4}
	}
	var body []bpf.Instruction
	switch {
	case r.only != nil:
		// The kernel reads some of these arguments as 32 bits. What has bits above is none of the values.
		n := uint8(len(r.only))
		body = append(body, load(4), bpf.JumpIf{Cond: bpf.JumpNotEqual, SkipTrue: n + 1}, load(0))
		for i, value := range r.only {
			body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: n - uint8(i)})
		}
	case r.bits != 0:
		body = append(body, load(0), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: r.bits, SkipTrue: 1})
	case r.not != 0:
		body = append(body, load(0), bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: r.not, SkipTrue: 1})
	}
	body = append(body, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetOfCall, Size: 4}, // the rule before may have loaded something else
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.call, SkipFalse: uint8(len(body))},
	}, body...)
}

// filter returns the program. Linux 5.11 and newer do not run it for calls that it allows whatever
// their arguments, such as read(2).
func filter(uses Uses) []bpf.Instruction {
	// The numbers mean other calls where a call comes by another architecture's entry, such as
	// int 0x80 on amd64.
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetOfArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: native, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		bpf.LoadAbsolute{Off: offsetOfCall, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: beyond, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, r := range rules(uses) {
		program = append(program, r.assemble()...)
	}
	return append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
}

// beyond is where the numbers of amd64's x32 begin, which are other entries to the same calls.

const beyond = 1 << 30

// Narrow makes system calls that the node agent never makes fail with EPERM, for all threads of this
// process and for good. The filter adds to that of the container runtime.
func Narrow(uses Uses) error {
	program, err := bpf.Assemble(filter(uses))
	if err != nil {
		return fmt.Errorf("assemble seccomp filter: %w", err)
	}
	raw := make([]unix.SockFilter, len(program))
	for i, in := range program {
		raw[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	// CAP_SYS_ADMIN would do instead, but nothing shall be gained by a set-user-ID program either.
	// With SECCOMP_FILTER_FLAG_TSYNC all threads get what this one has.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(raw)
	switch {
	case errno != 0:
		return fmt.Errorf("install seccomp filter: %w", errno)
	case thread != 0:
		return fmt.Errorf("install seccomp filter: thread %d has a filter that the others do not have", thread)
	}
	return nil
}
