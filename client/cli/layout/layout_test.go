// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
)

func TestTheColonsOfABlockStandInOneColumn(t *testing.T) {
	b := &Block{Indent: "  ", Hang: "    "}
	b.Add("Name", "orders")
	b.Add("Größe des Ports", "klein")
	b.Add("Left out", "")
	b.Add("Lines", "first\nsecond", "third")
	b.Add("Empty with lines", "", "one")
	var out strings.Builder
	_, err := b.WriteTo(&out)
	require.NoError(t, err)
	assert.Equal(t, `  Name            : orders
  Größe des Ports : klein
  Lines           : first
    second
    third
  Empty with lines:
    one
`, out.String())
}

func TestAShellReadsAQuotedWordAsItWas(t *testing.T) {
	for _, word := range []string{"x-user: it's", `a"b`, "$HOME", "`id`", `back\slash`, "", "new\nline",
		"!!", "*"} {
		out, err := exec.Command("sh", "-c", "printf %s "+Quote(word)).Output()
		require.NoError(t, err)
		assert.Equal(t, word, string(out))
	}
}

func TestWhatIsIntercepted(t *testing.T) {
	for want, info := range map[string]*daemonpb.InterceptInfo{
		"all TCP connections":              {Mechanism: "tcp"},
		"all HTTP requests":                {Mechanism: "http"},
		"HTTP requests that match all of:": {Mechanism: "http", Conditions: []string{`path-prefix("/api")`}},
	} {
		assert.Equal(t, want, intercepting(info))
	}
}

func TestPaintIsPlainWhenItIsOff(t *testing.T) {
	assert.Equal(t, "ACTIVE", Paint{}.state("ACTIVE"))
	assert.Equal(t, "\x1b[32mACTIVE\x1b[0m", Paint{On: true}.state("ACTIVE"))
	assert.Equal(t, "\x1b[33mPENDING\x1b[0m", Paint{On: true}.state("PENDING"))
	assert.Equal(t, "\x1b[31mFAILED\x1b[0m", Paint{On: true}.state("FAILED"))
	assert.Empty(t, Paint{On: true}.Good(""))
}
