// SPDX-License-Identifier: Apache-2.0

// Package docs holds no code: its test keeps what the documents say about tests true.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheTestsThatTheDocumentsNameExist(t *testing.T) {
	functions, endToEnd := "", ""
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		functions += string(text)
		if strings.Contains(path, filepath.Join("tests", "e2e")) {
			endToEnd += string(text)
		}
		return err
	}))
	text, err := os.ReadFile("compatibility.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(text), -1)
	assert.NotEmpty(t, named)
	for _, name := range named {
		assert.Contains(t, functions, "func "+name[1]+"(")
	}
	rows := regexp.MustCompile(`(?m)^\|.*\|([^|]*)\|$`).FindAllStringSubmatch(string(text), -1)
	assert.NotEmpty(t, rows)
	for _, row := range rows {
		for _, name := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(row[1], -1) {
			assert.Contains(t, endToEnd, `"`+name[1]+`"`)
		}
	}
}
