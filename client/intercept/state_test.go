// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestTheLifeOfAnIntercept(t *testing.T) {
	is := func(t *testing.T, r *Registry, want state) {
		t.Helper()
		require.NotNil(t, r.tracked["a"])
		assert.Equal(t, want, r.tracked["a"].state)
	}
	list := func(r *Registry, items ...v1alpha1.Intercept) { r.replace("shop", items, r.clock, endedBySomebody) }
	t.Run("a deletion that fails leaves it present", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.leaves("a")
		is(t, r, leaving)
		r.deleted("a", errors.New("no"))
		is(t, r, present)
	})
	t.Run("what is being left is left, whoever tells first, and old news do not bring it back", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.leaves("a")
		r.remove("a", endedBySomebody)
		is(t, r, left)
		r.deleted("a", nil)
		r.put(object("a", "2", 1, 1))
		is(t, r, left)
		assert.Empty(t, r.Ended(false))
	})
	t.Run("what somebody deletes has ended, until the user knows and leaves it", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		list(r)
		is(t, r, ended)
		assert.Len(t, r.Ended(true), 1)
		assert.Empty(t, r.Ended(true), "it is news once")
		assert.Error(t, r.leaveEnded("a"))
		assert.Empty(t, r.tracked)
	})
	t.Run("what the manager ended while the laptop was away is lost", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.presence = func() Presence { return Presence{Away: time.Hour, Grace: time.Minute} }
		list(r)
		is(t, r, lost)
		require.Len(t, r.Ended(false), 1)
		assert.True(t, r.Ended(false)[0].Again)
		_, still := r.Still("a")
		assert.True(t, still)
	})
	t.Run("what was made again goes on under another UID, with its process", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.tracked["a"].state, r.tracked["a"].next = replaced, "b"
		put(r, object("b", "2", 1, 1))
		uid, still := r.Still("a")
		assert.True(t, still)
		assert.EqualValues(t, "b", uid)
	})
	t.Run("what comes back with its kind is present again", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.replace("shop", nil, r.clock, endedWithKind)
		is(t, r, ended)
		list(r, *object("a", "1", 1, 1))
		is(t, r, present)
	})
	t.Run("what an earlier daemon kept is present or has ended at the first list", func(t *testing.T) {
		for _, there := range []bool{true, false} {
			r := newRegistry(t)
			k := Known{Name: "a", Namespace: "shop", UID: "a", Address: "127.0.0.1", Port: 9000}
			r.tracked["a"] = k.tracked()
			assert.Equal(t, []Known{k}, r.known(), "the next daemon looks for it too")
			is(t, r, expected)
			if there {
				list(r, *object("a", "1", 1, 1))
				is(t, r, present)
				assert.Equal(t, "127.0.0.1:9000", localAddr(r.tracked["a"].object))
			} else {
				list(r)
				is(t, r, ended)
			}
		}
	})
}
