// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
