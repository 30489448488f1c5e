// SPDX-License-Identifier: Apache-2.0

package unanswered

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
)

func TestEveryReasonSaysWhatHappenedAndWhatToDo(t *testing.T) {
	seen := map[Reason]bool{}
	for number, name := range agentpb.Unanswered_Reason_name {
		r := Of(agentpb.Unanswered_Reason(number))
		assert.False(t, seen[r], "%s: each has a name of its own", name)
		seen[r] = true
		assert.NotEmpty(t, texts[r].what, name)
		assert.NotEmpty(t, texts[r].advice, name)
	}
	assert.Len(t, seen, len(texts))
}

func TestReasonsOfNewerVersionsAreOther(t *testing.T) {
	assert.Equal(t, Other, Of(99))
	assert.Equal(t, Other.What(), Reason("Newer").What())
	assert.Equal(t, Other.Advice(), Reason("Newer").Advice())
}

func TestEveryReasonIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/output.md")
	require.NoError(t, err)
	for r, text := range texts {
		assert.Contains(t, string(page), fmt.Sprintf("| `%s` | %s | %s |\n", r, text.what, text.advice))
	}
}
