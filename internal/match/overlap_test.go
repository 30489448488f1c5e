// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestOverlaps(t *testing.T) {
	type headers = []v1alpha1.HeaderMatch
	tests := map[string]struct {
		a, b *v1alpha1.HTTPMatch
		want bool
	}{
		"two rules for every request overlap": {spec(nil), spec(nil), true},
		"a rule for every request overlaps with a header": {spec(nil),
			spec(nil, value("x-a", "1")), true},
		"a rule for every request overlaps with a path": {spec(nil),
			spec(equal("/x")), true},
		"the same value overlaps": {spec(nil,
			value("x-a", "1")), spec(nil, value("X-A", "1")), true},
		"different values of a header do not": {spec(nil,
			value("x-a", "1")), spec(nil, value("x-a", "2")), false},
		"different headers do not": {spec(nil,
			value("x-a", "1")), spec(nil, value("x-b", "1")), false},
		"a narrower rule overlaps with the wider one": {spec(nil,
			value("x-a", "1"), value("x-b", "2")), spec(nil, value("x-a", "1")), true},
		"rules that each want something else besides do not": {spec(nil,
			value("x-a", "1"), value("x-b", "2")), spec(nil, value("x-a", "1"), value("x-c", "2")), false},
		"a narrower rule with another value does not": {spec(nil,
			value("x-a", "1"), value("x-b", "2")), spec(nil, value("x-a", "2")), false},
		"a regex overlaps with a value that it matches": {spec(nil,
			regex("x-a", "[0-9]+")), spec(nil, value("x-a", "1")), true},
		"a regex does not overlap with a value that it does not match": {spec(nil,
			regex("x-a", "[0-9]+")), spec(nil, value("x-a", "one")), false},
		"the same regex overlaps": {spec(nil,
			regex("x-a", "a.*")), spec(nil, regex("x-a", "a.*")), true},
		"regexes that are written differently do not": {spec(nil,
			regex("x-a", "a.*")), spec(nil, regex("x-a", "a.+")), false},
		"a regex is wider than a value and more": {spec(nil,
			regex("x-a", ".*")), spec(nil, value("x-a", "1"), value("x-b", "2")), true},
		"a wider header with a condition besides does not": {spec(nil,
			regex("x-a", ".*"), value("x-b", "2")), spec(nil, value("x-a", "1")), false},
		"the same headers with paths apart do not": {spec(prefix("/a"),
			value("x-a", "1")), spec(prefix("/b"), value("x-a", "1")), false},
		"the same headers with nested paths overlap": {spec(prefix("/a"),
			value("x-a", "1")), spec(prefix("/a/b"), value("x-a", "1")), true},
		"a path overlaps with no path": {spec(prefix("/a"),
			value("x-a", "1")), spec(nil, value("x-a", "1")), true},
		"different values on the same path do not": {spec(prefix("/a"),
			value("x-a", "1")), spec(prefix("/a"), value("x-a", "2")), false},
		"equal paths overlap": {spec(equal("/a")),
			spec(equal("/a")), true},
		"different paths do not": {spec(equal("/a")),
			spec(equal("/ab")), false},
		"a path overlaps with its prefix": {spec(equal("/ab")),
			spec(prefix("/a")), true},
		"a path does not overlap with another prefix": {spec(equal("/ab")),
			spec(prefix("/abc")), false},
		"a path overlaps with a regex that matches it": {spec(equal("/v1")),
			spec(pathRegex("/v[0-9]")), true},
		"a path does not overlap with another regex": {spec(equal("/v10")),
			spec(pathRegex("/v[0-9]")), false},
		"prefixes apart do not overlap": {spec(prefix("/api")),
			spec(prefix("/app")), false},
		"a prefix overlaps with a regex that may begin so": {spec(prefix("/api/v1")),
			spec(pathRegex("/api/.*")), true},
		"a prefix overlaps with a regex that begins further on": {spec(prefix("/api")),
			spec(pathRegex("/api/v1/.*")), true},
		"a prefix does not overlap with a regex that begins elsewhere": {spec(prefix("/api/")),
			spec(pathRegex("^/app/.*")), false},
		"a prefix does not overlap with a shorter literal": {spec(prefix("/api/v1")),
			spec(pathRegex("/api")), false},
		"regexes that begin alike overlap": {spec(
			pathRegex("/api/a.*")), spec(pathRegex("/api/.*")), true},
		"regexes that begin differently do not": {spec(
			pathRegex("/a/.*")), spec(pathRegex("/b/.*")), false},
		"a regex that is a literal is compared exactly": {spec(pathRegex("/a/b")),
			spec(pathRegex("/a/[0-9]")), false},
		"a regex of which nothing is known overlaps": {spec(
			pathRegex("(?i)/b.*")), spec(pathRegex("/a.*")), true},
		"alternatives have no beginning in common": {spec(
			pathRegex("^/a|/b")), spec(prefix("/b")), true},
		"the header of two sessions does not overlap": {spec(nil,
			value("x-telepresence-intercept-id", "u1:orders")),
			spec(nil, value("x-telepresence-intercept-id", "u2:orders")), false},
		"a rule with a condition twice overlaps with one that has it once": {spec(nil,
			value("x-a", "1"), value("x-a", "1")), spec(nil, value("x-a", "1")), true},
		"a rule with two values of a header overlaps with the one of a value": {spec(nil,
			value("x-a", "1"), value("x-a", "2")), spec(nil, value("x-a", "1")), true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := rule(t, test.a.Path, headers(test.a.Headers)...),
				rule(t, test.b.Path, headers(test.b.Headers)...)
			assert.Equal(t, test.want, a.Overlaps(b))
			assert.Equal(t, test.want, b.Overlaps(a), "the other way round")
			assert.True(t, a.Overlaps(a))
			assert.True(t, b.Overlaps(b))
		})
	}
}
