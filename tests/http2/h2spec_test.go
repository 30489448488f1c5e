// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	h2 "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// conform runs h2spec against a server, all of it unless sections are named, and adds its verdicts
// by test.
func conform(t *testing.T, addr string, verdicts map[string][]string, sections ...string) {
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	c := &config.Config{Host: "127.0.0.1", Path: "/", Timeout: time.Second, MaxHeaderLen: 4000,
		Strict: true, Sections: sections}
	_, err = fmt.Sscan(port, &c.Port)
	require.NoError(t, err)
	for _, group := range []*spec.TestGroup{generic.Spec(), h2.Spec(), hpack.Spec()} {
		group.Test(c)
		collect(group, verdicts)
	}
}

func collect(g *spec.TestGroup, verdicts map[string][]string) {
	for i, tc := range append(g.Tests, g.StrictTests...) {
		name := fmt.Sprintf("%s %d: %s", g.ID(), i+1, tc.Desc)
		switch r := tc.Result; {
		case r == nil:
		case r.Failed:
			verdicts[name] = append(verdicts[name], "failed")
		case r.Skipped:
			verdicts[name] = append(verdicts[name], "skipped")
		default:
			verdicts[name] = append(verdicts[name], "passed")
		}
	}
	for _, sub := range g.Groups {
		collect(sub, verdicts)
	}
}

// conformingServer answers after a while, so that what it makes of a stream that is open or
// half-closed does not depend on when it is done.
func conformingServer(t *testing.T) string {
	l := listen(t)
	s := &http.Server{Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(30 * time.Millisecond)
			io.WriteString(w, strings.Repeat("hello ", 100))
		})}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func TestAnHTTP2ServerConformsThroughTheProxyAsItDoesDirectly(t *testing.T) {
	app := conformingServer(t)
	_, addr := newWorld(t, app, "")
	direct, through := map[string][]string{}, map[string][]string{}
	var sections []string
	var differ []string
	// what the server says of some tests is a matter of timing: these are run again, both ways
	for round := range 8 {
		if round > 0 && len(sections) == 0 {
			break
		}
		conform(t, app, direct, sections...)
		conform(t, addr, through, sections...)
		sections, differ = nil, nil
		for name, verdicts := range direct {
			if !slices.ContainsFunc(through[name],
				func(v string) bool { return slices.Contains(verdicts, v) }) {
				differ = append(differ, name)
				section, _, _ := strings.Cut(name, " ")
				sections = append(sections, section)
			}
		}
	}
	assert.Greater(t, len(direct), 140)
	assert.Empty(t, differ, "other verdicts through the proxy")
	assert.Len(t, through, len(direct))
	count := map[string]int{}
	for _, verdicts := range direct {
		count[verdicts[0]]++
	}
	t.Log(count)
}
