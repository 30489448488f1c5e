// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestExpressionsThatNothingMatches(t *testing.T) {
	for _, expr := range []string{`a$b`, `a^b`, `$a`, `a^`, `(a|b)$c`, `a\zb`, `(?m)a$b`, `a\bb`, `a\B-`, `-\b`, `(x$y|z^)`,
		`a(b$)c`, `$+a`, `\b`, `a\Ab`} {
		assert.True(t, impossible(expr), expr)
	}
	for expr, text := range map[string]string{`ab`: "ab", `^ab$`: "ab", `a$|b`: "b", `a\b-b`: "a-b", `a\Bb`: "ab", `(^a|b)c$`: "ac",
		``: "", `a*$`: "aa", `(ann|bob)@example\.com`: "bob@example.com", `.*`: "x", `\bx\b`: "x", `(?i)X`: "x", `é`: "é", `a?$`: ""} {
		assert.False(t, impossible(expr), expr)
		assert.True(t, regexp.MustCompile("^(?:"+expr+")$").MatchString(text), expr)
	}
}

func TestExpressionsThatLookLikeText(t *testing.T) {
	for _, expr := range []string{`a+b`, `C++`, `what?`, `f(x)`, `price$5`, `Bob+Alice`, `a{2}`, `100*2`} {
		assert.True(t, looksLiteral(expr) || impossible(expr) || regexp.MustCompile(`\+\+`).MatchString(expr), expr)
	}
	for _, expr := range []string{`(ann|bob)`, `ann.*`, `[0-9]+`, `a\+b`, `example.com`, `^ann$`, `v1.+`, `ann$`, `plain`} {
		assert.False(t, looksLiteral(expr), expr)
	}
}

func TestWhatIsSaidOfARuleThatHardlyMatches(t *testing.T) {
	asked := func(rule v1alpha1.HTTPMatch) *daemonpb.InterceptRequest {
		text, err := json.Marshal(rule)
		require.NoError(t, err)
		return &daemonpb.InterceptRequest{Http: string(text)}
	}
	of := func(name, value string, regex bool) *daemonpb.InterceptRequest {
		h := v1alpha1.HeaderMatch{Name: name, Value: &value}
		if regex {
			h.Value, h.Regex = nil, &value
		}
		return asked(v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{h}})
	}
	_, err := doubts(of("x-user", "a$b", true))
	assert.EqualError(t, err, `--http-header x-user=a$b can never match: its anchors (^, $, \b) contradict what stands beside them `+
		`— write a\$b if the value is that text`)
	warnings, err := doubts(of("x-user", "a+b", true))
	assert.NoError(t, err)
	assert.Equal(t, []string{`--http-header x-user=a+b is a regular expression, which does not match the text a+b: write a\+b for the text`},
		warnings)
	warnings, _ = doubts(of("Cookie", "session=ann", false))
	assert.Equal(t, []string{"--http-header Cookie=session=ann matches no request that has another cookie too: " +
		"write 'Cookie=(.*; ?)?session=ann(;.*)?'"}, warnings)
	assert.Regexp(t, `^(?:(.*; ?)?session=ann(;.*)?)$`, "theme=dark; session=ann", "and that is so")
	for _, none := range []*daemonpb.InterceptRequest{of("x-user", "ann", false), of("x-user", `(ann|bob)@example\.com`, true)} {
		warnings, err = doubts(none)
		assert.NoError(t, err)
		assert.Empty(t, warnings)
	}
	path := func(expr string) *daemonpb.InterceptRequest {
		return asked(v1alpha1.HTTPMatch{Path: &v1alpha1.PathMatch{Regex: &expr}})
	}
	_, err = doubts(path("/a$/b"))
	assert.ErrorContains(t, err, "can never match")
	_, err = doubts(path("api/.*"))
	assert.EqualError(t, err, "--http-path-regex api/.* can never match: a path begins with / — did you mean "+
		"/api/.*?")
	_, err = doubts(path(`/api/.*`))
	assert.NoError(t, err)
}
