// SPDX-License-Identifier: Apache-2.0

package house

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rule says what packages may not import. A name stands for the package and all below it; a name
// that ends in "!" stands for the package alone.
type rule struct {
	from   []string
	never  []string
	except []string
	why    string
}

// parts are the kinds of work on one pod. A new one is added here.
var parts = []string{
	"nodeagent/datagrams", "nodeagent/mesh", "nodeagent/outbound", "nodeagent/peername",
	"nodeagent/takeover", "nodeagent/tcpstats",
}

var rules = []rule{
	{from: []string{"client"}, never: []string{"cmd", "manager", "nodeagent"},
		why: "the programs share internal, api and bpf alone"},
	{from: []string{"manager"}, never: []string{"cmd", "client", "nodeagent", "bpf", "deploy"},
		why: "the programs share internal, api and bpf alone"},
	{from: []string{"nodeagent"}, never: []string{"cmd", "client", "manager", "deploy"},
		why: "the programs share internal, api and bpf alone"},
	{from: []string{"internal", "api", "bpf"},
		never: []string{"cmd", "client", "manager", "nodeagent", "deploy", "tests", "vmtests"},
		why:   "what programs share knows none of them"},
	{from: []string{"api", "bpf"}, never: []string{"internal"}, why: "internal stands on api and bpf"},
	{from: []string{"cmd", "client", "manager", "nodeagent", "internal", "api", "bpf", "deploy"},
		never: []string{"tests", "vmtests"}, why: "programs know no tests"},

	{from: []string{"manager/decide"}, never: []string{"manager/carry", "manager/web"},
		why: "what decides reads the API, and no connections"},
	{from: []string{"manager/carry"},
		never: []string{"manager/decide/claims", "manager/decide/controller", "manager/decide/resolve"},
		why:   "what carries reads the plan, and nothing of how it was made"},
	{from: []string{"manager/carry/parking"}, never: []string{"manager"}, why: "it parks streams of anybody"},
	{from: []string{"manager/changes", "manager/endpoint", "manager/decide/claims", "manager/certificate"},
		never: []string{"manager"}, why: "they are at the bottom of the manager"},
	{from: []string{"manager/access", "manager/carry", "manager/decide", "manager/web"},
		never: []string{"manager!"}, why: "the root puts the manager together"},

	{from: []string{"client/cli/"}, never: []string{"client/cli!"},
		why: "the root of the command line puts the nouns together"},
	{from: []string{"client"}, never: []string{"client/cli"}, except: []string{"client/cli"},
		why: "the daemon and what it stands on know no commands"},
	{from: []string{"client/cli"}, never: []string{"client/daemon!", "client/session", "client/link",
		"client/deliver", "client/workload", "client/podconn", "client/outbound"},
		except: []string{"client/cli!"}, why: "commands ask the daemon through its socket"},
	{from: []string{"client/deliver", "client/intercept", "client/kube", "client/link", "client/outbound",
		"client/podconn", "client/session", "client/workload"},
		never: []string{"client/daemon"}, why: "the daemon stands on them"},

	{from: parts, never: []string{"nodeagent/pods", "nodeagent!"},
		why: "a Part never learns who supervises it"},
	{from: []string{"nodeagent/pods"}, never: parts, why: "the supervisor of pods knows no Part"},
	{from: []string{"nodeagent/part"}, never: slices.Concat(parts, []string{"nodeagent/pods", "nodeagent/proxy"}),
		why: "the seam knows neither side"},
	{from: []string{"nodeagent/"}, never: []string{"nodeagent!"}, why: "the root puts the node agent together"},
	{from: []string{"nodeagent/proxy/"}, never: []string{"nodeagent/proxy!"},
		why: "the proxy stands on its protocols"},
	{from: []string{"nodeagent/headwatch", "nodeagent/http1", "nodeagent/procs", "nodeagent/rawip",
		"nodeagent/sockdiag", "nodeagent/tc"},
		never: []string{"nodeagent/pods", "nodeagent/part", "nodeagent/proxy", "nodeagent/takeover"},
		why:   "they are at the bottom of the node agent"},
}

// covers reports whether the package is one that a name of a rule stands for.
func covers(name, dir string) bool {
	if one, ok := strings.CutSuffix(name, "!"); ok {
		return dir == one
	}
	if strings.HasSuffix(name, "/") { // all below it, and not the package itself
		return strings.HasPrefix(dir, name)
	}
	return dir == name || strings.HasPrefix(dir, name+"/")
}

func coveredBy(names []string, dir string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return covers(name, dir) })
}

// broken returns why a package may not import another, or "" if it may.
func broken(from, to string) string {
	for _, r := range rules {
		if from != to && coveredBy(r.from, from) && !coveredBy(r.except, from) && coveredBy(r.never, to) &&
			!oneTree(r, from, to) {
			return r.why
		}
	}
	return ""
}

// oneTree reports whether both packages are below one directory that the rule names on both sides, as
// the packages of one Part are.
func oneTree(r rule, from, to string) bool {
	return slices.ContainsFunc(r.from, func(name string) bool {
		return slices.Contains(r.never, name) && covers(name, from) && covers(name, to)
	})
}

func TestImportsPointOneWay(t *testing.T) {
	checked := 0
	for _, f := range tree(t) {
		if f.Test {
			continue
		}
		for _, to := range f.Imports() {
			checked++
			assert.Emptyf(t, broken(f.Dir(), to), "%s imports %s", f.Path, to)
		}
	}
	assert.Greater(t, checked, 300)
}

func TestRulesNamePackagesThatExist(t *testing.T) {
	dirs := map[string]bool{}
	for _, f := range tree(t) {
		for dir := f.Dir(); dir != "."; dir = parent(dir) {
			dirs[dir] = true
		}
	}
	for _, r := range rules {
		for _, name := range slices.Concat(r.from, r.never, r.except) {
			assert.Truef(t, dirs[strings.TrimRight(name, "/!")], "a rule names %s", name)
		}
	}
}

func parent(dir string) string {
	if i := strings.LastIndexByte(dir, '/'); i >= 0 {
		return dir[:i]
	}
	return "."
}

func TestRulesRefuseWhatTheyShould(t *testing.T) {
	for _, one := range []struct {
		from, to string
		may      bool
	}{
		{"manager/carry/relay", "manager/decide/controller", false},
		{"manager/carry/relay", "manager/decide/plan", true},
		{"manager/decide/plan", "manager/carry/relay", false},
		{"manager", "manager/carry/relay", true},
		{"client/cli/list", "client/cli", false},
		{"client/cli/list", "client/cli/env", true},
		{"client/session", "client/cli/output", false},
		{"client/session", "manager/endpoint", false},
		{"nodeagent/takeover", "nodeagent/pods", false},
		{"nodeagent/pods", "nodeagent/takeover", false},
		{"nodeagent/mesh", "nodeagent/part", true},
		{"nodeagent", "nodeagent/mesh", true},
		{"internal/match", "nodeagent/http1", false},
		{"internal/match", "api/agentpb", true},
		{"tests/bench/growth", "manager", true},
	} {
		assert.Equalf(t, one.may, broken(one.from, one.to) == "", "%s imports %s", one.from, one.to)
	}
}

var read = sync.OnceValues(func() ([]*File, error) { return Read("../..") })

func tree(t *testing.T) []*File {
	t.Helper()
	files, err := read()
	require.NoError(t, err)
	require.Greater(t, len(files), 300)
	return files
}
