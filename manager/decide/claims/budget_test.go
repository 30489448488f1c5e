// SPDX-License-Identifier: Apache-2.0

package claims_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/manager/decide/claims"
)

func TestTheBudgetOfANamespaceGoesToThoseWhoHaveItAndThenToTheOldest(t *testing.T) {
	b := claims.NewBudget(100)
	ask := func(namespace string, uid types.UID, age int64, size int, had bool) (bool, []types.UID) {
		return b.Ask(namespace, uid, time.Unix(age, 0), size, had)
	}
	granted, _ := ask("shop", "a", 3, 60, false)
	assert.True(t, granted)
	granted, changed := ask("shop", "b", 1, 60, false)
	assert.False(t, granted, "there is no room, and what is granted stays so")
	assert.Empty(t, changed)
	granted, _ = ask("shop", "c", 4, 50, false)
	assert.False(t, granted)
	granted, _ = ask("shop", "d", 5, 0, false)
	assert.True(t, granted, "exact values cost nothing")
	granted, _ = ask("other", "e", 6, 100, false)
	assert.True(t, granted, "each namespace has a budget of its own")

	granted, changed = ask("shop", "r", 2, 30, true)
	assert.True(t, granted, "one that had a share before a restart")
	assert.Empty(t, changed)
	granted, changed = ask("shop", "s", 2, 60, true)
	assert.True(t, granted)
	assert.Equal(t, []types.UID{"a"}, changed, "the younger one gives way")
	granted, changed = ask("shop", "late", 9, 60, true)
	assert.False(t, granted, "a younger one takes nothing from older ones")
	assert.Empty(t, changed)

	assert.Equal(t, []types.UID{"b"}, b.Return("shop", "s"), "the oldest that waits")
	assert.Empty(t, b.Return("shop", "s"))
	assert.Empty(t, b.Return("nowhere", "s"))
	assert.Empty(t, b.Return("shop", "c"), "one that waited")
	granted, _ = ask("shop", "b", 1, 60, false)
	assert.True(t, granted)
	granted, _ = ask("shop", "a", 3, 60, false)
	assert.False(t, granted)
	assert.Equal(t, []types.UID{"a"}, b.Return("shop", "b"))
}
