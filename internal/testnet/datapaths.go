// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
)

// Datapaths names the ways of steering that this kernel must be capable of, by its version alone:
// what it lacks all the same is to make tests fail.
func Datapaths(t testing.TB) []string {
	t.Helper()
	all := []string{"sk_lookup", "clsact"}
	if KernelAtLeast(t, 6, 6) {
		all = append(all, "tcx")
	}
	return all
}

// RequireLinux skips the test on kernels older than what it needs, with a line that vmtests reads. Whatever a
// younger kernel lacks is to make the test fail.
func RequireLinux(t testing.TB, r bpf.Requirement) {
	t.Helper()
	var major, minor int
	_, err := fmt.Sscanf(r.Linux, "%d.%d", &major, &minor)
	require.NoError(t, err)
	if !KernelAtLeast(t, major, minor) {
		t.Skip(r.Line())
	}
}

// KernelAtLeast compares the version of the kernel.
func KernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var uts unix.Utsname
	require.NoError(t, unix.Uname(&uts))
	var has, hasMinor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &has, &hasMinor)
	require.NoError(t, err)
	return has > major || has == major && hasMinor >= minor
}
