// SPDX-License-Identifier: Apache-2.0

package version

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestVersionsThatNobodyTestsTogether(t *testing.T) {
	for _, c := range []struct {
		version, other string
		older, newer   bool
	}{
		{"v1.4.0", "v1.4.7", false, false},
		{"v1.4.0", "v1.5.0", false, false},
		{"v1.4.0", "v1.3.9-12-gabcdef0", false, false},
		{"v1.4.0", "v1.6.0", true, false},
		{"v1.6.0-3-gabcdef0-dirty", "v1.4.0", false, true},
		{"v1.9.0", "v2.0.0", true, false},
		{"v2.0.0", "v1.9.0", false, true},
		{"v0.0.0-dev", "v1.9.0", false, false},
		{"abcdef0-dirty", "v1.9.0", false, false},
		{"v1.9.0", "", false, false},
	} {
		older, newer := Apart(c.version, c.other)
		assert.Equal(t, [2]bool{c.older, c.newer}, [2]bool{older, newer}, "%s and %s", c.version, c.other)
	}
}
