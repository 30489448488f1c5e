// SPDX-License-Identifier: Apache-2.0

package changes

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestEveryChangeIsTakenOnce(t *testing.T) {
	set := NewSet[int]()
	set.Add()
	select {
	case <-set.Wake():
		t.Fatal("nothing was added")
	default:
	}
	set.Add(1, 2)
	set.Add(2, 3)
	<-set.Wake()
	assert.ElementsMatch(t, []int{1, 2, 3}, set.Take())
	assert.Empty(t, set.Take())
}

func TestNoChangeIsLostBetweenWriters(t *testing.T) {
	const writers, each = 8, 1000
	set := NewSet[int]()
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				set.Add(w*each + i)
			}
		})
	}
	taken := map[int]bool{}
	for len(taken) < writers*each {
		<-set.Wake() // a lost wake-up would hang here
		for _, k := range set.Take() {
			assert.False(t, taken[k])
			taken[k] = true
		}
	}
	writing.Wait()
}
