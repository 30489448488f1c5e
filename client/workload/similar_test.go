// SPDX-License-Identifier: Apache-2.0

package workload_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/client/workload"
)

func TestSimilar(t *testing.T) {
	known := []string{"cart", "frontend", "orders", "orders-worker", "stock", "x"}
	for name, want := range map[string][]string{
		"ordrs":          {"orders"},
		"odrers":         {"orders"},
		"order":          {"orders", "orders-worker"},
		"orders-workers": {"orders-worker", "orders"},
		"stcok":          {"stock"},
		"front":          {"frontend"},
		"card":           {"cart"},
		"zzz":            nil,
		"":               {"x"},
	} {
		assert.Equal(t, want, workload.Similar(name, known), name)
	}
}
