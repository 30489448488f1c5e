// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/testnet"
)

func TestPeernameLoads(t *testing.T) {
	testnet.RequireRoot(t)
	require.NoError(t, rlimit.RemoveMemlock())
	objs, err := bpf.LoadPeername()
	require.NoError(t, err)
	require.NoError(t, objs.Close())
}
