// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAPeerHasNoMoreThanItMay(t *testing.T) {
	q := New(2)
	assert.True(t, q.Enter("a"))
	assert.True(t, q.Enter("a"))
	assert.False(t, q.Enter("a"))
	assert.True(t, q.Enter("b"), "another has its own")
	q.Leave("a")
	assert.True(t, q.Enter("a"))
	for range 2 {
		q.Leave("a")
	}
	q.Leave("b")
	assert.Empty(t, q.count, "nothing is remembered of peers that have gone")
}
