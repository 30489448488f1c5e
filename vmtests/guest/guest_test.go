// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRunMarksWhereEachBinaryBeginsAndEnds(t *testing.T) {
	var out strings.Builder
	require.NoError(t, Run(t.Context(), &out, []Test{
		{Package: "a", Binary: "/bin/sh", Dir: "/",
			Args: []string{"-c", "echo $CI; pwd; printf unfinished; exit 3"}},
		{Package: "b", Binary: "/nowhere"},
	}))
	var marks []string
	for line := range strings.Lines(out.String()) {
		if word, text, ok := ParseMark(line); ok {
			marks = append(marks, strings.TrimSpace(word+" "+text))
		}
	}
	assert.Equal(t, []string{"start a", "end a 3 0.0", "start b",
		"problem run the tests of b: fork/exec /nowhere: no such file or directory",
		"end b -1 0.0", "done"}, marks)
	assert.Contains(t, out.String(), "1\n/\nunfinished\n")
}
