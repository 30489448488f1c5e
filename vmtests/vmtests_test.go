// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/vmtests/debian"
	"sidestep.dev/sidestep/vmtests/report"
)

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		err  string
	}{
		{"everything", []string{"-docs", "x.md"}, ""},
		{"a part", []string{"-kernels", "6.1", "-run", "TestX"}, ""},
		{"no machine", []string{"-machines", "0"}, "at least one"},
		{"an unknown accelerator", []string{"-accel", "xen"}, "use kvm or tcg"},
		{"an argument", []string{"6.1"}, "unexpected argument"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(tc.args, io.Discard)
			if tc.err == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, tc.err)
			}
		})
	}
}

func TestTableIsReplacedInTheDocs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.md")
	require.NoError(t, os.WriteFile(file, []byte("before\n"+tableBegin+"old\n"+tableEnd+"after\n"), 0o644))
	require.NoError(t, writeDocs(file, "new\n"))
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "before\n"+tableBegin+"new\n"+tableEnd+"after\n", string(got))
	require.NoError(t, os.WriteFile(file, []byte("no table\n"), 0o644))
	assert.ErrorContains(t, writeDocs(file, "new\n"), "table")
}

func TestPackagesThatFaceTheKernel(t *testing.T) {
	for _, tc := range []struct {
		name string
		pkg  pkg
		want bool
	}{
		{"uses BPF", pkg{ImportPath: project + "bpf", Imports: []string{"github.com/cilium/ebpf/link"}}, true},
		{"is tested in network namespaces",
			pkg{ImportPath: project + "x", XTestImports: []string{project + "internal/testnet"}}, true},
		{"makes system calls for the node agent",
			pkg{ImportPath: project + "nodeagent/proxy/stream",
				Imports: []string{"golang.org/x/sys/unix"}}, true},
		{"makes system calls on the laptop",
			pkg{ImportPath: project + "client/daemon", Imports: []string{"golang.org/x/sys/unix"}}, false},
		{"makes system calls in tests alone",
			pkg{ImportPath: project + "nodeagent/proxy",
				TestImports: []string{"golang.org/x/sys/unix"}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.want, tc.pkg.facesKernel()) })
	}
}

func TestLongOutputIsCut(t *testing.T) {
	got := indent(strings.Repeat("x\n", 100) + "\x16last")
	assert.True(t, strings.HasPrefix(got, "    (41 lines before)\n"))
	assert.True(t, strings.HasSuffix(got, "    last\n"))
}

func TestResultsOfAPartCompleteEarlierOnes(t *testing.T) {
	l := &lab{cache: &debian.Cache{Dir: t.TempDir()}}
	kernel := func(version string, tests ...report.Test) *report.Kernel {
		return &report.Kernel{Name: "6.1", Release: "6.1.0-56", Version: version, Done: true, Tests: tests}
	}
	old := report.Test{Package: "a", Name: "TestOld", Outcome: report.Fail}
	other := report.Test{Package: "b", Name: "TestOther", Outcome: report.Pass}
	young := report.Test{Package: "a", Name: "TestYoung", Outcome: report.Pass}
	require.NoError(t, l.remember(kernel("6.1.192", old, other)))
	require.NoError(t, l.remember(kernel("6.1.192", young)))
	unfinished := kernel("6.1.192", old)
	unfinished.Done = false
	require.NoError(t, l.remember(unfinished))
	got, err := l.recall("6.1")
	require.NoError(t, err)
	assert.Equal(t, []report.Test{young}, got.Packages["a"].Tests)
	assert.Equal(t, []report.Test{other}, got.Packages["b"].Tests)
	require.NoError(t, l.remember(kernel("6.1.193", young)))
	got, err = l.recall("6.1")
	require.NoError(t, err)
	assert.NotContains(t, got.Packages, "b", "another kernel's results")
}
