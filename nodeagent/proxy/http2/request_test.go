// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestRequestsThatAreReadInTwoWaysAreTheApps(t *testing.T) {
	valid := []string{":method", "GET", ":scheme", "http", ":path", "/"}
	for _, list := range [][]string{
		append(slices.Clone(valid), "x-dev", "me", ":path", "/b"),
		append(slices.Clone(valid), ":path", "/b", "x-dev", "me"),
		append(slices.Clone(valid), "X-Dev", "me", "x-dev", "me"),
		append(slices.Clone(valid), ":unknown", "x", "x-dev", "me"),
		{":method", "GET", ":scheme", "http", "x-dev", "me"}, {":scheme", "http", ":path", "/", "x-dev", "me"},
		append(slices.Clone(valid), "", "x", "x-dev", "me"),
		append(slices.Clone(valid), "a b", "x", "x-dev", "me"),
	} {
		sc, client, app := begin(t)
		client.headers(1, true, list...)
		client.send()
		app.next(http2.FrameHeaders)
		assert.Zero(t, sc.matches, "%q", list)
	}
}

func TestHeadOffersWhatHTTP1Would(t *testing.T) {
	var h head
	require.True(t, h.parse([]hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/a/b?c=/d"}, {Name: ":authority", Value: "orders:80"},
		{Name: "cookie", Value: "a=1"}, {Name: "x", Value: " 1 "}, {Name: "cookie", Value: "b=2"},
		{Name: "x", Value: "2"},
	}))
	values := func(name string) (list []string) {
		h.Values(name, func(v []byte) bool { list = append(list, string(v)); return true })
		return list
	}
	assert.Equal(t, "/a/b", string(h.Path()))
	assert.Equal(t, []string{"1", "2"}, values("x"))
	assert.Equal(t, []string{"orders:80"}, values("host"))
	assert.Equal(t, []string{"a=1; b=2"}, values("cookie"))
	assert.Empty(t, values(":path"))
}
