// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestRoundTripTimesOfNeighboursAreNotNothing(t *testing.T) {
	assert.Equal(t, "0.034 ms", roundTrip(34*time.Microsecond))
	assert.Equal(t, "0.4 ms", roundTrip(400*time.Microsecond))
	assert.Equal(t, "123.5 ms", roundTrip(123456*time.Microsecond))
}
