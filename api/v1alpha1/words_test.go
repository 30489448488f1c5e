// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is checked here is what the API server checks.
func TestWordsAreThoseOfTheDefinition(t *testing.T) {
	crd, err := os.ReadFile("../../deploy/chart/crds/sidestep.dev_intercepts.yaml")
	require.NoError(t, err)
	assert.Contains(t, string(crd), "pattern: "+validName.String()+"\n")
	var enum strings.Builder
	for _, word := range []string{"auto", "idle", "all", "none"} {
		enum.WriteString(`- ` + word + "\n")
	}
	flat := strings.ReplaceAll(string(crd), "  ", "")
	assert.Contains(t, flat, enum.String())
	assert.ElementsMatch(t, []string{"auto", "idle", "all", "none"}, ExistingWords())
	assert.True(t, ValidName("orders-shop.x"))
	for _, none := range []string{"", "-a", "a-", "A", "a_b", strings.Repeat("a", 254)} {
		assert.False(t, ValidName(none), none)
	}
}
