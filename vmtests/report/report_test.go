// SPDX-License-Identifier: Apache-2.0

package report

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output is the output of two packages on one kernel. \x16 is what -test.v=test2json puts before a
// line of the framework.
const output = `
=vmtest= release 6.1.0-56-cloud-amd64
=vmtest= problem mount /run: no such device

=vmtest= start example/a
` + "\x16=== RUN   TestOne\n\x16=== RUN   TestOne/over_IPv4\n    a_test.go:3: it is slow\n\x16--- PASS: TestOne (0.10s)\n" +
	"    \x16--- PASS: TestOne/over_IPv4 (0.10s)\n\x16=== RUN   TestTwo\n\x16=== RUN   TestTwo/x\n    a_test.go:9: broken\n" +
	"\x16--- FAIL: TestTwo (0.00s)\n    \x16--- FAIL: TestTwo/x (0.00s)\n" +
	"\x16=== RUN   TestNew\n    a_test.go:12: kernel lacks {\"feature\":\"links of TC\",\"linux\":\"6.6\"}\n\x16--- SKIP: TestNew (0.00s)\n" +
	"\x16=== RUN   TestOld\n    a_test.go:15: kernel lacks {\"feature\":\"sk_lookup\",\"linux\":\"5.9\"}\n\x16--- SKIP: TestOld (0.00s)\n\x16FAIL\n" + `
=vmtest= end example/a 1 1.5

=vmtest= start example/b
` + "\x16=== RUN   TestPanics\npanic: no\n\ngoroutine 1 [running]:\n" + `
=vmtest= end example/b 2 1.5

=vmtest= start example/c
PASS

=vmtest= end example/c 0 1.5
`

func read(t *testing.T, text string) *Kernel {
	t.Helper()
	tool, err := exec.Command("go", "tool", "-n", "test2json").Output()
	require.NoError(t, err)
	k := &Kernel{Name: "6.1"}
	r := &Reader{Kernel: k, Convert: []string{strings.TrimSpace(string(tool))}}
	require.NoError(t, r.Read(t.Context(), strings.NewReader(text)))
	return k
}

func what(k *Kernel) (all []string) {
	for _, f := range k.Failures() {
		all = append(all, f.What)
	}
	return all
}

func TestFailures(t *testing.T) {
	k := read(t, output+"\n=vmtest= done \n")
	assert.Equal(t, []string{
		"mount /run: no such device",
		"example/a TestTwo/x",
		"example/a TestOld was skipped",
		"example/b TestPanics",
	}, what(k))
	assert.Contains(t, k.Failures()[1].Output, "a_test.go:9: broken")
	assert.Contains(t, k.Failures()[3].Output, "panic: no")
	assert.Equal(t, "6.1 (6.1.0-56-cloud-amd64): 1 passed, 2 failed, 2 skipped", k.Summary())
}

func TestMachineThatDiesIsAFailure(t *testing.T) {
	k := read(t, output+"\n=vmtest= start example/d\n\x16=== RUN   TestPanicsTheKernel\n")
	assert.Contains(t, what(k), "example/d TestPanicsTheKernel")
	assert.Contains(t, what(k), "the run has not reached its end")
	assert.Equal(t, []string{"the run has not reached its end"}, what(read(t, "")))
	assert.Equal(t, []string{"example/d ", "the run has not reached its end"},
		what(read(t, "\n=vmtest= start example/d\n")))
}

func TestOlder(t *testing.T) {
	k := &Kernel{Release: "6.1.0-56-cloud-amd64"}
	for version, want := range map[string]bool{"5.9": false, "6.1": false, "6.2": true, "6.12": true,
		"7.0": true} {
		assert.Equal(t, want, k.Older(version), version)
	}
}

func TestTable(t *testing.T) {
	old := read(t, output+"\n=vmtest= done \n")
	young := read(t, strings.ReplaceAll(output, "release 6.1.0-56", "release 6.12.1")+"\n=vmtest= done \n")
	young.Name = "6.12"
	got := rows([]Row{
		{"One", `^example/a TestOne`, ""}, {"Two", `^example/a TestTwo`, ""}, {"New", `TestNew`, ""},
		{"Gone", `TestGone`, ""},
		{"Newer", `TestNewer`, "6.6"},
	}, []*Kernel{old, young})
	assert.Equal(t, []line{
		{"One", []string{yes, yes}}, {"Two", []string{no, no}}, {"New", []string{absent, no}},
		{"Gone", []string{no, no}},
		{"Newer", []string{absent, no}},
	}, got)
}
