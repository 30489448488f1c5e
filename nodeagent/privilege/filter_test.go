// SPDX-License-Identifier: Apache-2.0

package privilege

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdict runs the filter. The machine of package bpf takes its input in network byte order.
func verdict(t *testing.T, arch, call uint32, args ...uint64) int {
	t.Helper()
	vm, err := bpf.NewVM(filter(Uses{}))
	require.NoError(t, err)
	data := make([]byte, offsetOfArgs+8*6)
	binary.BigEndian.PutUint32(data[offsetOfCall:], call)
	binary.BigEndian.PutUint32(data[offsetOfArch:], arch)
	for i, arg := range args {
		binary.BigEndian.PutUint32(data[offsetOfArgs+8*i:], uint32(arg))
		binary.BigEndian.PutUint32(data[offsetOfArgs+8*i+4:], uint32(arg>>32))
	}
	got, err := vm.Run(data)
	require.NoError(t, err)
	return got
}

const eperm = unix.SECCOMP_RET_ERRNO | int(unix.EPERM)

// On amd64, int 0x80 leads to the system calls of i386, whose numbers are others, and numbers from
// 1<<30 on are those of x32.
func TestSystemCallsOfAnotherArchitectureAreDenied(t *testing.T) {
	assert.Equal(t, unix.SECCOMP_RET_ALLOW, verdict(t, native, unix.SYS_GETPID))
	for _, arch := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM} {
		assert.Equal(t, eperm, verdict(t, arch, unix.SYS_GETPID))
	}
	assert.Equal(t, unix.SECCOMP_RET_ERRNO|int(unix.ENOSYS), verdict(t, native, 1<<30|unix.SYS_PTRACE))
}

// The rules for one call must not be applied to another whose arguments look like its number.
func TestRulesAreForOneSystemCallAlone(t *testing.T) {
	for _, call := range rules(Uses{}) {
		for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
			got := verdict(t, native, unix.SYS_SOCKET, family, uint64(call.call), ^uint64(0))
			assert.Equal(t, unix.SECCOMP_RET_ALLOW, got, "socket(%d, %d)", family, call.call)
		}
		if call.call != unix.SYS_CLONE3 && call.bits == 0 && call.only == nil && call.not == 0 {
			assert.Equal(t, eperm, verdict(t, native, call.call), "system call %d", call.call)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, r := range rules(Uses{}) {
		args := func(value uint64) []uint64 {
			all := make([]uint64, 6)
			all[r.arg] = value
			return all
		}
		for _, value := range r.only {
			assert.Equal(t, unix.SECCOMP_RET_ALLOW, verdict(t, native, r.call, args(uint64(value))...))
			assert.Equal(t, eperm, verdict(t, native, r.call, args(uint64(value)|1<<32)...))
		}
		if r.only != nil {
			assert.Equal(t, eperm, verdict(t, native, r.call, args(1<<31)...))
		}
		if r.bits != 0 {
			assert.Equal(t, unix.SECCOMP_RET_ALLOW, verdict(t, native, r.call, args(uint64(r.bits|1<<31))...))
			assert.Equal(t, eperm, verdict(t, native, r.call, args(uint64(^r.bits))...))
		}
		if r.not != 0 {
			assert.Equal(t, unix.SECCOMP_RET_ALLOW, verdict(t, native, r.call, args(uint64(^r.not))...))
			assert.Equal(t, eperm, verdict(t, native, r.call, args(uint64(r.not))...))
		}
	}
}
