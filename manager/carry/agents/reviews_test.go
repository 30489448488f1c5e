// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errBad = status.Error(codes.Unauthenticated, "a bad token")

func TestAStrangerIsHeldBackAfterBadTokensAndAKnownAddressIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReviews(time.Now)
		ask := func(address string, answer error) time.Duration {
			began := time.Now()
			done, err := r.begin(t.Context(), address)
			require.NoError(t, err)
			done(answer)
			return time.Since(began)
		}
		for range badTokens {
			assert.Zero(t, ask("a", errBad))
		}
		assert.Equal(t, badPause, ask("a", errBad))
		assert.Zero(t, ask("b", errBad), "another address")
		assert.Equal(t, badPause, ask("a", nil))
		for range 2 * badTokens {
			assert.Zero(t, ask("a", errBad), "node agents are there")
		}
		time.Sleep(knownFor)
		assert.Zero(t, ask("a", errBad), "old sins are forgiven")
	})
}

func TestStrangersLeaveReviewsToKnownAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReviews(time.Now)
		done, err := r.begin(t.Context(), "a node")
		require.NoError(t, err)
		done(nil)

		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		begun := map[string]int{}
		for i := range 10 * others {
			go func() {
				address := fmt.Sprint("stranger ", i/perAddress/2)
				if done, err := r.begin(ctx, address); err == nil {
					mu.Lock()
					begun[address]++
					mu.Unlock()
					<-ctx.Done()
					done(errBad)
				}
			}()
		}
		synctest.Wait()
		all := 0
		for _, n := range begun {
			assert.LessOrEqual(t, n, perAddress)
			all += n
		}
		assert.Equal(t, others, all)
		for range reserved / perAddress {
			done, err := r.begin(t.Context(), "a node")
			require.NoError(t, err)
			done(nil)
		}
		cancel()
		synctest.Wait()
		time.Sleep(knownFor)
		r.tidy()
		assert.Empty(t, r.addresses)
	})
}
