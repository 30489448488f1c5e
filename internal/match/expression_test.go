// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"regexp/syntax"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/v1alpha1"
)

func byRegex(exprs ...string) *v1alpha1.HTTPMatch {
	spec := &v1alpha1.HTTPMatch{}
	for i := range exprs {
		spec.Headers = append(spec.Headers, v1alpha1.HeaderMatch{Name: "x-user", Regex: &exprs[i]})
	}
	return spec
}

// lines is a request with one field, several times.
type lines []string

func (lines) Path() []byte { return []byte("/") }

func (l lines) Values(_ string, yield func([]byte) bool) {
	for _, line := range l {
		if !yield([]byte(line)) {
			return
		}
	}
}

func TestExpressionsThatWouldCostTooMuchAreRefusedBeforeTheyAreCompiled(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, test := range map[string]struct {
		exprs []string
		says  string
	}{
		"a long expression":         {[]string{"(?:" + strings.Repeat("a", 3000) + "){1000}"}, "512 are allowed"},
		"a repeat of a long text":   {[]string{"(?:" + strings.Repeat("a", 400) + "){1000}"}, "repeat counts multiply"},
		"a repeat of options":       {[]string{"(?:" + strings.Repeat("a?", 160) + "){1000}"}, "repeat counts multiply"},
		"a repeat of a repeat":      {[]string{"(?:a{40}b){25}(?:c{20}d){50}"}, "more than 2000 instructions"},
		"up to many":                {[]string{"(?:[a-z]x){0,1000}"}, "more than 2000 instructions"},
		"at least many":             {[]string{"(?:abc){1000,}"}, "more than 2000 instructions"},
		"many large classes":        {[]string{strings.Repeat(`\pL`, 100)}, "more than 2000 instructions"},
		"several that are allowed":  {[]string{"a{900}", "b{900}", "c{900}", "d{900}", "e{900}"}, "4000 are allowed"},
		"more headers than allowed": {strings.Split(strings.Repeat("a ", 17), " "), "16 are allowed"},
	} {
		began := time.Now()
		_, err := FromSpec(byRegex(test.exprs...))
		assert.ErrorContains(t, err, test.says, name)
		assert.Less(t, time.Since(began), 5*time.Second, name)
		if err != nil {
			assert.Less(t, len(err.Error()), 1000, "the message is read by people")
		}
	}
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20), "bytes allocated to refuse them")
}

func TestExpressionsOfOrdinarySizeAreAccepted(t *testing.T) {
	for _, expr := range []string{
		".*", "(?i)alice|bob", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:.*", `Bearer eyJ[\w-]+\.[\w-]+\.[\w-]{43}`,
		`(?:.*; )?session=(?:alice|bob)[0-9]{1,64}(?:;.*)?`, `[\pL\pN]+`, strings.Repeat("name|", 90) + "x",
		"a{1000}",
	} {
		_, err := FromSpec(byRegex(expr))
		assert.NoError(t, err, expr)
	}
}

func TestNoRequestCostsMoreThanItsShare(t *testing.T) {
	rule, err := FromSpec(byRegex("(?:a?){900}b", "(?:a?){900}c"))
	require.NoError(t, err)
	var head lines
	for range 64 {
		head = append(head, strings.Repeat("a", 1000))
	}
	began := time.Now()
	assert.False(t, rule.Match(head))
	took := time.Since(began)
	t.Logf("64 KiB of the worst values: %s", took)
	assert.Less(t, took, 5*time.Second, "a fraction of a second on an idle machine; unbounded, a minute")
}

func TestAValueThatIsTooLongDoesNotMatchAnExpression(t *testing.T) {
	rule, err := FromSpec(byRegex("a.*"))
	require.NoError(t, err)
	assert.True(t, rule.Match(lines{strings.Repeat("a", MaxValue)}))
	assert.False(t, rule.Match(lines{strings.Repeat("a", MaxValue+1)}))
	long := strings.Repeat("a", 4<<10)
	exact, err := FromSpec(&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-user", Value: &long}}})
	require.NoError(t, err)
	assert.True(t, exact.Match(lines{long}), "exact values have no such bound")

	costly, err := FromSpec(byRegex("(?:a?){900}"))
	require.NoError(t, err)
	assert.True(t, costly.Match(lines{strings.Repeat("a", 900)}))
	assert.False(t, costly.Match(lines{strings.Repeat("a", 4000)}), "the effort is a product")
}

func TestRulesThatTakeTooLongToCompareOverlap(t *testing.T) {
	long := strings.Repeat("a", 4000)
	exact, err := FromSpec(&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-user", Value: &long}}})
	require.NoError(t, err)
	costly, err := FromSpec(byRegex("(?:a?){900}b"))
	require.NoError(t, err)
	assert.True(t, exact.Overlaps(costly))
	assert.True(t, costly.Overlaps(exact))
	cheap, err := FromSpec(byRegex("b.*"))
	require.NoError(t, err)
	assert.False(t, exact.Overlaps(cheap))
}

func TestAnExpressionIsCompiledAndKeptOnce(t *testing.T) {
	text := fmt.Sprintf("once-%d.*", time.Now().UnixNano())
	one, err := compile(text)
	require.NoError(t, err)
	two, err := compile(text)
	require.NoError(t, err)
	assert.Same(t, one, two)
	runtime.KeepAlive(one)
	one, two = nil, nil
	assert.Eventually(t, func() bool {
		runtime.GC()
		expressions.Lock()
		defer expressions.Unlock()
		_, there := expressions.byText[text]
		return !there
	}, 10*time.Second, time.Millisecond, "an expression that nobody uses is forgotten")
}

func FuzzProgramSizeIsAnUpperBound(f *testing.F) {
	for _, seed := range []string{
		"", "a", "abc|def", "a{3}", "a{3,}", "a{0,7}", "a{0}", "(a|b){2,5}", "(?:){1000}", "a**", "(?i)straße",
		`\pL{3}`, "x*?y+?", "^a$", `\bx\B`, "[^a]", ".", "(?s).", "(((a)))", "a?{7}", "(?:^a){9}", "[[:word:]]{2,4}",
		"a|b|cd", "(?:ab|ac|ad){3}", "(?:a{0,2}){0,3}", `\Qa.b`, "(?:a?){900}b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > MaxExpression {
			return
		}
		tree, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			return
		}
		size := programSize(tree) + 4
		if size > MaxProgram {
			return
		}
		prog, err := syntax.Compile(tree.Simplify())
		if err != nil {
			return
		}
		if len(prog.Inst) > size {
			t.Errorf("%q: %d instructions, %d expected at most", text, len(prog.Inst), size)
		}
	})
}
