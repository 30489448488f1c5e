// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

// request is a Head with its lines as they were sent.
type request struct {
	path  string
	lines [][2]string
}

func (r *request) Path() []byte { return []byte(r.path) }

func (r *request) Values(name string, yield func([]byte) bool) {
	for _, l := range r.lines {
		if strings.ToLower(l[0]) == name && !yield([]byte(l[1])) {
			return
		}
	}
}

func get(path string, lines ...string) *request {
	r := &request{path: path}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		r.lines = append(r.lines, [2]string{name, value})
	}
	return r
}

func value(name, v string) v1alpha1.HeaderMatch {
	return v1alpha1.HeaderMatch{Name: name, Value: &v}
}

func regex(name, v string) v1alpha1.HeaderMatch {
	return v1alpha1.HeaderMatch{Name: name, Regex: &v}
}

func equal(p string) *v1alpha1.PathMatch     { return &v1alpha1.PathMatch{Equal: &p} }
func prefix(p string) *v1alpha1.PathMatch    { return &v1alpha1.PathMatch{Prefix: &p} }
func pathRegex(p string) *v1alpha1.PathMatch { return &v1alpha1.PathMatch{Regex: &p} }

func spec(p *v1alpha1.PathMatch, headers ...v1alpha1.HeaderMatch) *v1alpha1.HTTPMatch {
	return &v1alpha1.HTTPMatch{Path: p, Headers: headers}
}

func rule(t testing.TB, p *v1alpha1.PathMatch, headers ...v1alpha1.HeaderMatch) match.Rule {
	t.Helper()
	r, err := match.FromSpec(spec(p, headers...))
	require.NoError(t, err)
	return r
}

func TestMatch(t *testing.T) {
	tests := map[string]struct {
		path    *v1alpha1.PathMatch
		headers []v1alpha1.HeaderMatch
		yes, no []*request
	}{
		"a rule without conditions matches every request": {
			yes: []*request{get("/"), get("*"), get(""), get("/x", "x-a: 1")},
		},
		"names are compared without regard to case": {
			headers: []v1alpha1.HeaderMatch{value("X-User", "me")},
			yes:     []*request{get("/", "x-user: me"), get("/", "X-USER: me")},
			no:      []*request{get("/"), get("/", "x-users: me"), get("/", "user: me")},
		},
		"an exact value is compared byte for byte": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "me")},
			no: []*request{get("/", "x-user: Me"), get("/", "x-user: me too"),
				get("/", "x-user: m"), get("/", "x-user:")},
		},
		"whitespace around a value does not count": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "me and you")},
			yes:     []*request{get("/", "x-user:me and you"), get("/", "x-user: \t me and you\t ")},
			no:      []*request{get("/", "x-user: me  and you")},
		},
		"a value is not split at commas": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "me")},
			no:      []*request{get("/", "x-user: me, you")},
		},
		"a value that looks like an expression is still exact": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "m.")},
			yes:     []*request{get("/", "x-user: m.")},
			no:      []*request{get("/", "x-user: me")},
		},
		"any line of a header that comes several times matches": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "me")},
			yes: []*request{get("/", "x-user: you", "x-other: 1", "X-User: me"),
				get("/", "x-user: me", "x-user: you")},
			no: []*request{get("/", "x-user: you", "x-user: they")},
		},
		"an empty value matches an empty header, not an absent one": {
			headers: []v1alpha1.HeaderMatch{value("x-user", "")},
			yes:     []*request{get("/", "x-user:"), get("/", "x-user:  ")},
			no:      []*request{get("/")},
		},
		"all headers must match": {
			headers: []v1alpha1.HeaderMatch{value("x-a", "1"), regex("x-b", "2|3")},
			yes:     []*request{get("/", "x-a: 1", "x-b: 3")},
			no:      []*request{get("/", "x-a: 1"), get("/", "x-b: 3"), get("/", "x-a: 2", "x-b: 3")},
		},
		"two conditions on one header may be met by two lines": {
			headers: []v1alpha1.HeaderMatch{value("x-a", "1"), value("x-a", "2")},
			yes:     []*request{get("/", "x-a: 2", "x-a: 1")},
			no:      []*request{get("/", "x-a: 2", "x-a: 2")},
		},
		"a regex must match the whole value": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", "a|bc")},
			yes:     []*request{get("/", "x-user: a"), get("/", "x-user: bc")},
			no:      []*request{get("/", "x-user: abc"), get("/", "x-user: ac"), get("/", "x-user: ba")},
		},
		"anchors in a regex change nothing": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", "^me$")},
			yes:     []*request{get("/", "x-user: me")},
			no:      []*request{get("/", "x-user: me2")},
		},
		"flags in a regex hold for all of it": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", "(?i)me|you")},
			yes:     []*request{get("/", "x-user: YOU")},
		},
		"an open quotation in a regex ends with it": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", `a|\Qm)e`)},
			yes:     []*request{get("/", "x-user: m)e"), get("/", "x-user: a")},
			no:      []*request{get("/", "x-user: am)e")},
		},
		"a regex on an absent header does not match": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", ".*")},
			yes:     []*request{get("/", "x-user:")},
			no:      []*request{get("/")},
		},
		"bytes that are not UTF-8 are bytes": {
			headers: []v1alpha1.HeaderMatch{regex("x-user", ".*e")},
			yes:     []*request{get("/", "x-user: \xff\xfee")},
		},
		"an equal path is the whole path": {
			path: equal("/api"),
			yes:  []*request{get("/api")},
			no:   []*request{get("/api/"), get("/ap"), get("/API"), get("/"), get("")},
		},
		"a path prefix is a prefix of its bytes": {
			path: prefix("/api"),
			yes:  []*request{get("/api"), get("/api/x"), get("/apis")},
			no:   []*request{get("/ap"), get("/"), get("/x/api"), get("*")},
		},
		"a path regex matches the whole path": {
			path: pathRegex("/v[12]/.*"),
			yes:  []*request{get("/v1/"), get("/v2/x/y")},
			no:   []*request{get("/v3/"), get("/x/v1/"), get("/v1")},
		},
		"a path is compared as it was sent": {
			path: prefix("/api/"),
			no:   []*request{get("/%61pi/"), get("/x/../api/"), get("//api/")},
		},
		"path and headers must both match": {
			path:    prefix("/api"),
			headers: []v1alpha1.HeaderMatch{value("x-a", "1")},
			yes:     []*request{get("/api", "x-a: 1")},
			no:      []*request{get("/api"), get("/", "x-a: 1")},
		},
		"the asterisk of OPTIONS can be asked for": {
			path: equal("*"),
			yes:  []*request{get("*")},
			no:   []*request{get("/*")},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			compiled := rule(t, test.path, test.headers...)
			wire, err := proto.Marshal(&agentpb.Rule{Http: compiled.Proto()})
			require.NoError(t, err)
			var received agentpb.Rule
			require.NoError(t, proto.Unmarshal(wire, &received))
			travelled, err := match.FromProto(received.Http)
			require.NoError(t, err)
			for _, r := range []match.Rule{compiled, travelled} {
				for _, req := range test.yes {
					assert.True(t, r.Match(req), "%+v", req)
				}
				for _, req := range test.no {
					assert.False(t, r.Match(req), "%+v", req)
				}
			}
			assert.Equal(t, compiled.Conditions(), travelled.Conditions())
		})
	}
}

func TestTheZeroRuleIsTheOneWithoutConditions(t *testing.T) {
	var zero match.Rule
	assert.True(t, zero.Match(get("/")))
	assert.Nil(t, zero.Proto())
	for _, s := range []*v1alpha1.HTTPMatch{nil, {}} {
		r, err := match.FromSpec(s)
		require.NoError(t, err)
		assert.Equal(t, zero, r)
	}
	r, err := match.FromProto(nil)
	require.NoError(t, err)
	assert.Equal(t, zero, r)
}

func TestRulesThatCannotWorkAreRefusedWithAReason(t *testing.T) {
	tests := map[string]struct {
		spec *v1alpha1.HTTPMatch
		want []string
	}{
		"a broken regex": {spec(nil, value("x-a", "1"), regex("x-b", "a(b")),
			[]string{"http.headers[1]", "x-b", `"a(b"`, "missing closing )"}},
		"a regex out of balance": {spec(nil, regex("x-b", "a)|(b")), []string{`"a)|(b"`, "unexpected )"}},
		"a lone asterisk":        {spec(nil, regex("x-b", "*")), []string{`"*"`, `put \ before`}},
		"what RE2 does not have": {spec(nil, regex("x-b", "(?=a)")), []string{`"(?=a)"`, "RE2"}},
		"a name with a space":    {spec(nil, value("x b", "1")), []string{`"x b"`, "not a header name"}},
		"an empty name":          {spec(nil, value("", "1")), []string{"not a header name"}},
		"a value with a newline": {spec(nil, value("x-b", "1\n2")), []string{"x-b", "control characters"}},
		"neither value nor regex": {spec(nil, v1alpha1.HeaderMatch{Name: "x-b"}),
			[]string{"x-b", "either a value or a regex"}},
		"both value and regex": {spec(nil,
			v1alpha1.HeaderMatch{Name: "x-b", Value: new("1"), Regex: new("1")}), []string{"x-b", "not both"}},
		"a path of no kind": {spec(&v1alpha1.PathMatch{}), []string{"http.path", "exactly one"}},
		"a path of two kinds": {spec(&v1alpha1.PathMatch{Equal: new("/"), Prefix: new("/")}),
			[]string{"exactly one"}},
		"a path without a slash": {spec(prefix("api")), []string{`prefix "api"`, "start it with /"}},
		"an empty path prefix":   {spec(prefix("")), []string{"start it with /"}},
		"a path with a query":    {spec(equal("/a?b=c")), []string{`equal "/a?b=c"`, "without its query"}},
		"a broken path regex":    {spec(pathRegex("/[")), []string{"http.path", `"/["`, "missing closing ]"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := match.FromSpec(test.spec)
			require.Error(t, err)
			for _, want := range test.want {
				assert.ErrorContains(t, err, want)
			}
		})
	}
	_, err := match.FromProto(&agentpb.HTTPMatch{Headers: []*agentpb.HeaderMatch{{Name: "x-a"}}})
	assert.ErrorContains(t, err, "x-a")
	_, err = match.FromProto(&agentpb.HTTPMatch{Path: &agentpb.PathMatch{}})
	assert.ErrorContains(t, err, "exactly one")
}

// bareHead does not allocate itself.
type bareHead struct {
	path, name, value []byte
}

func (h *bareHead) Path() []byte { return h.path }

func (h *bareHead) Values(name string, yield func([]byte) bool) {
	if string(h.name) == name {
		yield(h.value)
	}
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	r := rule(t, pathRegex("/api/.*"), value("x-user", "me"), regex("x-user", "m.*"))
	head := &bareHead{[]byte("/api/x"), []byte("x-user"), []byte(" me")}
	require.True(t, r.Match(head))
	if raceDetector {
		return
	}
	assert.Zero(t, testing.AllocsPerRun(1000, func() { r.Match(head) }))
}

func TestAnAbsentFieldIsNotAskedForTwice(t *testing.T) {
	asked := 0
	r := rule(t, nil, value("x-a", "1"), value("x-b", "1"))
	assert.False(t, r.Match(countingHead{&asked}))
	assert.Equal(t, 1, asked, "the first condition that fails decides")
}

type countingHead struct{ asked *int }

func (countingHead) Path() []byte                       { return nil }
func (h countingHead) Values(string, func([]byte) bool) { *h.asked++ }

func BenchmarkMatch(b *testing.B) {
	r := rule(b, prefix("/api"), value("x-user", "me"), regex("x-team", "(red|blue)-[0-9]+"))
	head := &twoFields{}
	b.ReportAllocs()
	for b.Loop() {
		if !r.Match(head) {
			b.Fatal("no match")
		}
	}
}

type twoFields struct{}

var (
	apiPath = []byte("/api/orders/17")
	me      = []byte("me")
	blue    = []byte("blue-42")
)

func (twoFields) Path() []byte { return apiPath }

func (twoFields) Values(name string, yield func([]byte) bool) {
	if name == "x-user" {
		yield(me)
	} else {
		yield(blue)
	}
}
