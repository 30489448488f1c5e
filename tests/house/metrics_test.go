// SPDX-License-Identifier: Apache-2.0

package house

import (
	"go/ast"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var metricName = regexp.MustCompile(`^sidestep_[a-z0-9_]+$`)

// metricsOf returns the metrics that the programs' source names, with the place of each. A name
// stands in one piece, so that whoever sees it on a dashboard finds its code.
func metricsOf(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, f := range tree(t) {
		if f.Test || strings.HasPrefix(f.Path, "tests/") {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && metricName.MatchString(text) {
					all[text] = f.Path
				}
			case *ast.CompositeLit:
				checkOptions(t, f, n)
			}
			return true
		})
	}
	return all
}

// checkOptions fails if options of a metric put its name together.
func checkOptions(t *testing.T, f *File, literal *ast.CompositeLit) {
	of, ok := literal.Type.(*ast.SelectorExpr)
	if !ok || !strings.HasSuffix(of.Sel.Name, "Opts") {
		return
	}
	if in, ok := of.X.(*ast.Ident); !ok || in.Name != "prometheus" {
		return
	}
	for _, element := range literal.Elts {
		field, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, _ := field.Key.(*ast.Ident)
		_, joined := field.Value.(*ast.BinaryExpr)
		if key != nil && (key.Name == "Namespace" || key.Name == "Subsystem" || key.Name == "Name" && joined) {
			assert.Failf(t, "the name of a metric stands in one piece", "%s", f.Set.Position(literal.Pos()))
		}
	}
}

var row = regexp.MustCompile("(?m)^\\| `(sidestep_[a-z0-9_]+)` \\|([^|]*)\\|([^|]*)\\|([^|]*)\\|([^|]*)\\|$")

func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	documented := map[string]bool{}
	for _, r := range row.FindAllStringSubmatch(string(text), -1) {
		for i := range r {
			r[i] = strings.TrimSpace(r[i])
		}
		name, kind, unit, meaning := r[1], r[2], r[4], r[5]
		assert.Falsef(t, documented[name], "%s is documented twice", name)
		documented[name] = true
		assert.Containsf(t, []string{"counter", "gauge", "histogram"}, kind, "type of %s", name)
		assert.Equalf(t, kind == "counter", strings.HasSuffix(name, "_total"), "%s, a %s", name, kind)
		for _, of := range []string{"seconds", "bytes"} {
			if strings.HasSuffix(strings.TrimSuffix(name, "_total"), "_"+of) {
				assert.Equalf(t, of, unit, "unit of %s", name)
			}
		}
		assert.NotEmptyf(t, meaning, "meaning of %s", name)
	}
	code := metricsOf(t)
	for name, at := range code {
		assert.Truef(t, documented[name], "%s of %s is not in docs/metrics.md", name, at)
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		assert.Containsf(t, code, name, "docs/metrics.md has %s, which no program has", name)
	}
	assert.Greater(t, len(code), 45)
}
