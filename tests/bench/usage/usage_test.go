// SPDX-License-Identifier: Apache-2.0

package usage_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/bench/usage"
)

func TestMemoryAndCPUOfThisProcess(t *testing.T) {
	m, err := usage.MemoryOf(os.Getpid())
	require.NoError(t, err)
	assert.Greater(t, m.RSS, int64(1<<20))
	assert.GreaterOrEqual(t, m.RSS, m.PSS)
	assert.Greater(t, m.RSS, m.Anonymous)
	assert.Positive(t, m.Anonymous)
	for began, n := time.Now(), 0; ; n++ {
		used, err := usage.CPUOf(os.Getpid())
		require.NoError(t, err)
		if used >= 20*time.Millisecond {
			break
		}
		require.Less(t, time.Since(began), time.Minute, "%d readings take no time", n)
	}
	rest, err := usage.Rest(t.Context(), 10*time.Millisecond, os.Getpid())
	require.NoError(t, err)
	assert.Len(t, rest, 1)
	_, err = usage.CPUOf(1<<22 + 1) // beyond the largest there is
	assert.Error(t, err)
}
