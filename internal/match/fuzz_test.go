// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"bufio"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/net/http/httpguts"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

// naive decides as slowly and plainly as the rules are written down.
func naive(s *v1alpha1.HTTPMatch, path string, lines [][2]string) bool {
	// An expression matches all of a text if its longest match at the beginning is as long.
	whole := func(expr, text string) bool {
		re := regexp.MustCompile(expr)
		re.Longest()
		at := re.FindStringIndex(text)
		return at != nil && at[0] == 0 && at[1] == len(text)
	}
	for _, h := range s.Headers {
		met := false
		for _, l := range lines {
			value := strings.Trim(l[1], " \t")
			switch {
			case !strings.EqualFold(l[0], h.Name):
			case h.Value != nil && value == strings.Trim(*h.Value, " \t\r\n"), h.Regex != nil &&
				whole(*h.Regex, value):
				met = true
			}
		}
		if !met {
			return false
		}
	}
	switch p := s.Path; {
	case p == nil:
		return true
	case p.Equal != nil:
		return path == *p.Equal
	case p.Prefix != nil:
		return strings.HasPrefix(path, *p.Prefix)
	default:
		return whole(*p.Regex, path)
	}
}

// fuzzedSpec makes a rule of a text: a condition a line, "name=value", "name~regex", "=path",
// "^prefix" or "~regex" of the path.
func fuzzedSpec(text string) *v1alpha1.HTTPMatch {
	s := &v1alpha1.HTTPMatch{}
	for line := range strings.SplitSeq(text, "\n") {
		at := strings.IndexAny(line, "=~^")
		if at < 0 {
			continue
		}
		name, v := line[:at], line[at+1:]
		switch op := line[at]; {
		case at == 0 && op == '=':
			s.Path = &v1alpha1.PathMatch{Equal: &v}
		case at == 0 && op == '^':
			s.Path = &v1alpha1.PathMatch{Prefix: &v}
		case at == 0:
			s.Path = &v1alpha1.PathMatch{Regex: &v}
		case op == '~':
			s.Headers = append(s.Headers, regex(name, v))
		default:
			s.Headers = append(s.Headers, value(name, v))
		}
	}
	return s
}

// fuzzedRequest is a path, and the fields of lines "name:value" after it.
func fuzzedRequest(text string) *request {
	lines := strings.Split(text, "\n")
	return get(lines[0], lines[1:]...)
}

// FuzzMatch holds matching against a naive reference and against what net/http makes of the same
// request, and what is said about overlaps against requests that two rules match.
func FuzzMatch(f *testing.F) {
	for _, seed := range [][3]string{
		{"x-user=me", "X-User=me\n^/api", "/api/x\nx-user: me"},
		{"X-User~m.*|you\n=/api", "x-user=you", "/api\nx-useR: \tyou "},
		{"a~\\Qx", "a~x\\E|y", "/\nA:x "},
		{"x-user=\nx-a=1\nx-a=2", "x-a=1", "/a%20b\nx-user:\nx-a: 2\nx-a: 1"},
		{"~/v[12]/.*", "^/v1/", "/v1/x\nh: h"},
		{"~^/a|/b$", "=/b", "/b"},
		{"~(?i)/API/.*", "~/api/[a-z]+", "/api/x"},
		{"=*", "^/", "*"},
		{"x~(a|ab)(c|bcd)(d*)", "x~a+?b??", "/\nx: abcd"},
		{"", "x=1", "/\nX:1"},
		{"x~(?s).", "x~[^a]", "/\nx: \xff"},
		{"x~(?m)^a$", "x~\\ba\\b", "/\nx: a"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, one, two, sent string) {
		if len(one)+len(two)+len(sent) > 1000 {
			return
		}
		specs := []*v1alpha1.HTTPMatch{fuzzedSpec(one), fuzzedSpec(two)}
		var rules []match.Rule
		for _, s := range specs {
			r, err := match.FromSpec(s)
			if err != nil {
				return
			}
			rules = append(rules, r)
			assert.True(t, r.Overlaps(r))
			for _, line := range append(r.Conditions(), r.String()) {
				assert.False(t, strings.ContainsAny(line, "\r\n"), "%q", line)
			}
		}
		assert.Equal(t, rules[0].Overlaps(rules[1]), rules[1].Overlaps(rules[0]), "the other way round")
		head := fuzzedRequest(sent)
		for i, r := range rules {
			assert.Equal(t, naive(specs[i], head.path, head.lines), r.Match(head), "%s matches %q", r, sent)
			travelled, err := match.FromProto(r.Proto())
			assert.NoError(t, err)
			assert.Equal(t, r.Match(head), travelled.Match(head),
				"%s matches %q after it has travelled", r, sent)
		}
		overlapsAsItMust(t, specs, rules, head)
		matchesAsNetHTTPReads(t, specs[0], rules[0], head)
	})
}

// overlapsAsItMust checks what can be checked about overlaps with one request: rules with the same
// headers, or with headers on one side alone, overlap when one path fulfils both.
func overlapsAsItMust(t *testing.T, specs []*v1alpha1.HTTPMatch, rules []match.Rule, head *request) {
	comparable := len(specs[0].Headers) == 0 || len(specs[1].Headers) == 0 ||
		slices.EqualFunc(specs[0].Headers, specs[1].Headers, func(a, b v1alpha1.HeaderMatch) bool {
			return strings.EqualFold(a.Name, b.Name) &&
				(a.Value != nil && b.Value != nil && *a.Value == *b.Value || a.Regex != nil &&
					b.Regex != nil && *a.Regex == *b.Regex)
		})
	if comparable && rules[0].Match(head) && rules[1].Match(head) {
		assert.True(t, rules[0].Overlaps(rules[1]), "%s and %s both match %+v", rules[0], rules[1], head)
	}
}

// matchesAsNetHTTPReads matches with the fields as net/http's parser hands them to an app.
func matchesAsNetHTTPReads(t *testing.T, s *v1alpha1.HTTPMatch, r match.Rule, head *request) {
	raw := "GET / HTTP/1.1\r\nHost: h\r\n"
	for _, l := range head.lines {
		if strings.ContainsAny(l[0]+l[1], "\r\n") || !httpguts.ValidHeaderFieldName(l[0]) {
			return // another request than was meant, such as one with a folded line
		}
		raw += l[0] + ":" + l[1] + "\r\n"
	}
	parsed, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n")))
	if err != nil {
		return
	}
	theirs := &request{path: head.path}
	for name, values := range parsed.Header {
		for _, v := range values {
			theirs.lines = append(theirs.lines, [2]string{name, v})
		}
	}
	for _, h := range s.Headers {
		switch strings.ToLower(h.Name) {
		case "host", "transfer-encoding", "content-length", "trailer", "pragma", "cache-control":
			return // net/http takes them out of the header, or adds to them
		}
	}
	assert.Equal(t, r.Match(theirs), r.Match(head), "%s matches %q", r, raw)
}
