// SPDX-License-Identifier: Apache-2.0

package house

import (
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	maxFile     = 450 // lines
	maxFunction = 60
)

func TestPackagesHaveADocComment(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range tree(t) {
		if f.Test && f.Syntax.Name.Name != "docs" && !strings.HasPrefix(f.Path, "tests/") {
			continue
		}
		name := f.Syntax.Name.Name
		dir := f.Dir()
		doc := f.Syntax.Doc.Text()
		begins := strings.HasPrefix(doc, "Package "+name+" ")
		if name == "main" {
			begins = strings.HasPrefix(doc, "Command ")
		}
		documented[dir] = documented[dir] || begins
	}
	for dir, is := range documented {
		assert.Truef(t, is, "package %s has no doc comment that begins with its name", dir)
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range tree(t) {
		if f.Test || f.Generated || f.Syntax.Name.Name == "main" {
			continue
		}
		for _, name := range f.Undocumented() {
			assert.Failf(t, "no doc comment that begins with the name", "%s: %s", f.Path, name)
		}
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	for _, f := range tree(t) {
		if f.Generated {
			continue
		}
		assert.LessOrEqualf(t, f.Lines, maxFile, "lines of %s: which idea wants a file of its own?", f.Path)
		if f.Test {
			continue // the table of a test is as long as its cases are many
		}
		for _, long := range f.LongFunctions(maxFunction) {
			assert.Failf(t, "a long function needs a reason, as a line \"Long: <reason>\" of its doc comment",
				"%s: %s has %d lines", f.Path, long.Name, long.Lines)
		}
	}
}

func TestSourceFilesNameTheirLicense(t *testing.T) {
	licensed := []string{".go", ".c", ".h", ".sh", ".proto"}
	checked := 0
	generated := map[string]bool{}
	for _, f := range tree(t) {
		generated[f.Path] = f.Generated
	}
	require.NoError(t, Walk("../..", func(below string) error {
		if !slices.Contains(licensed, path.Ext(below)) || generated[below] {
			return nil
		}
		text, err := os.ReadFile(filepath.Join("../..", below))
		if err != nil {
			return err
		}
		head := string(text[:min(len(text), 200)])
		checked++
		assert.Containsf(t, head, "SPDX-License-Identifier: ", "head of %s", below)
		return nil
	}))
	assert.Greater(t, checked, 400)
}

func TestAdviceIsAFieldOfAnError(t *testing.T) {
	dash := false
	for _, f := range tree(t) {
		if f.Test || f.Generated || strings.HasPrefix(f.Path, "tests/") || strings.HasPrefix(f.Path, "vmtests/") {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			text, ok := n.(*ast.BasicLit)
			if !ok || text.Kind != token.STRING || !strings.Contains(text.Value, " — ") {
				return true
			}
			if f.Path == "internal/reason/reason.go" {
				dash = true
				return true
			}
			assert.Failf(t, "what to do about an error goes into Advise of internal/reason", "%s",
				f.Set.Position(text.Pos()))
			return true
		})
	}
	assert.True(t, dash, "internal/reason has the dash")
}
