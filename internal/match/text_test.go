// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

func TestRulesArePrintedTheWayPeopleKnow(t *testing.T) {
	const id = "71d5e134-1163-4d17-a138-e35624c1e941:orders"
	tests := map[string]struct {
		spec   *v1alpha1.HTTPMatch
		lines  []string
		oneWay string
		curl   []string
	}{
		"every request": {spec(nil), nil, "all HTTP requests", nil},
		"the automatic header": {
			spec(nil, value(match.AutoHeader, id)),
			[]string{`header("x-telepresence-intercept-id") ~= regexp("` + id + `")`},
			`HTTP requests that match header("x-telepresence-intercept-id") ~= regexp("` + id + `")`,
			[]string{"x-telepresence-intercept-id: " + id},
		},
		"a regex and a path prefix": {
			spec(prefix("/api"), regex("X-User", `a\.b.*`)),
			[]string{`header("x-user") ~= regexp("a\.b.*")`, `path-prefix("/api")`},
			`HTTP requests that match header("x-user") ~= regexp("a\.b.*") and path-prefix("/api")`,
			nil,
		},
		"an exact value that is not the same as an expression": {
			spec(equal("/x"), value("x-user", "a.b")),
			[]string{`header("x-user") == "a.b"`, `path-equal("/x")`},
			`HTTP requests that match header("x-user") == "a.b" and path-equal("/x")`,
			[]string{"x-user: a.b"},
		},
		"what would break the line": {
			spec(pathRegex("/\n\"")),
			[]string{`path-regex("/\n\"")`},
			`HTTP requests that match path-regex("/\n\"")`,
			nil,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := rule(t, test.spec.Path, test.spec.Headers...)
			assert.Equal(t, test.lines, r.Conditions())
			assert.Equal(t, test.oneWay, r.String())
			assert.Equal(t, test.curl, r.CurlHeaders())
		})
	}
}

func TestHeaderFlags(t *testing.T) {
	const id = "71d5e134-1163-4d17-a138-e35624c1e941:orders"
	tests := map[string]struct {
		flag string
		want v1alpha1.HeaderMatch
	}{
		"an equals sign separates":                  {"x-user=me", value("x-user", "me")},
		"a colon separates":                         {"x-user:me", value("x-user", "me")},
		"a colon and a space separate":              {"X-User: me", value("X-User", "me")},
		"spaces around do not count":                {" x-user = me ", value("x-user", "me")},
		"the value may hold a colon":                {"x-user=a:b", value("x-user", "a:b")},
		"the value may hold an equals sign":         {"x-user: a=b", value("x-user", "a=b")},
		"the value may be an identity":              {match.AutoHeader + "=" + id, value(match.AutoHeader, id)},
		"the value may be an address":               {"x-user=me@host", value("x-user", "me@host")},
		"the value may have inner spaces":           {"x-user: me and you", value("x-user", "me and you")},
		"metacharacters make an expression":         {"x-user=m.*", regex("x-user", "m.*")},
		"a dot makes an expression":                 {"x-user=a.b", regex("x-user", "a.b")},
		"an escaped dot is an expression":           {`x-user=a\.b`, regex("x-user", `a\.b`)},
		"alternatives are an expression":            {"x-user: a|b", regex("x-user", "a|b")},
		"an expression may hold the separators too": {"x-user=(a=b|c:d)", regex("x-user", "(a=b|c:d)")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := match.ParseHeaderFlag(test.flag)
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
		})
	}
	refused := map[string]struct{ flag, want string }{
		"no value":            {"x-user", "write NAME=VALUE"},
		"nothing at all":      {"", "write NAME=VALUE"},
		"an empty value":      {"x-user=", "x-user=.* for any value"},
		"no name":             {"=me", "has no name"},
		"a name with a space": {"x user=me", "not a header name"},
		"a broken expression": {"x-user=a(b", "missing closing )"},
		"a lone asterisk":     {"x-user=*", `put \ before`},
	}
	for name, test := range refused {
		t.Run("refused: "+name, func(t *testing.T) {
			_, err := match.ParseHeaderFlag(test.flag)
			assert.ErrorContains(t, err, test.want)
		})
	}
}
