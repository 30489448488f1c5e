// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

var update = flag.Bool("update", false, "write what is printed into testdata instead of comparing it")

// transcript is what a developer types, by one of the program's names, and sees.
type transcript struct {
	*testing.T
	who  *lab.Developer
	name string
	text strings.Builder
}

// says adds a remark.
func (tr *transcript) says(text string) { fmt.Fprintf(&tr.text, "# %s\n", text) }

// types runs a command line and adds it with its output. An error is no failure: the output shows
// it.
func (tr *transcript) types(line string, more ...string) string {
	tr.Helper()
	ctx, cancel := context.WithTimeout(tr.Context(), time.Minute)
	defer cancel()
	shown := line
	for _, arg := range more {
		shown += " '" + arg + "'"
	}
	args := append(strings.Fields(line), more...)
	cmd := tr.who.Command(ctx, append([]string{filepath.Join(tr.who.Home(), "bin", tr.name)}, args...)...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	failed := cmd.Run()
	require.NotNil(tr, cmd.ProcessState, "%v", failed)
	fmt.Fprintf(&tr.text, "$ %s %s\n%s", tr.name, shown, out.String())
	if err.Len() > 0 {
		fmt.Fprintf(&tr.text, "[stderr]\n%s", err.String())
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		fmt.Fprintf(&tr.text, "[exit %d]\n", code)
	}
	tr.text.WriteString("\n")
	return out.String()
}

// names makes both names of the program ones that the developer can call.
func names(t *testing.T, d *lab.Developer) {
	t.Helper()
	script := `mkdir -p "$HOME/bin" && for name in sidestep telepresence; do ln -sf "$(command -v sidestep)" "$HOME/bin/$name"; done`
	_, err := lab.Output(d.Command(t.Context(), "sh", "-c", script))
	require.NoError(t, err)
}

// masks replace what differs from run to run, and from cluster to cluster.
var masks = []struct {
	what *regexp.Regexp
	with string
}{
	// before an intercept's name
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(:)`), "<uuid>$2"},
	{regexp.MustCompile(`\b(ann|bob|admin)@[^\s,:)]+`), "$1@<laptop>"},
	{regexp.MustCompile(`https://[^\s)]+`), "https://<server>"},
	{regexp.MustCompile(`(?m)^( *Kubernetes context *: ).*$`), "$1<context>"},
	{regexp.MustCompile(`(Connected to context )[^,]+`), "$1<context>"},
	{regexp.MustCompile(`(?m)^( *Version *: )\S+`), "$1<version>"},
	// It is there once node agents have reported, which they do every second.
	{regexp.MustCompile(`(?m)^ +answered here: .*\n`), ""},
}

func masked(text string) string {
	for _, m := range masks {
		text = m.what.ReplaceAllString(text, m.with)
	}
	return text
}

// golden compares a text with a golden file, line by line.
func golden(t *testing.T, name, text string) {
	t.Helper()
	got := masked(text)
	file := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run the test with -args -update to make it")
	wants, gots := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range max(len(wants), len(gots)) {
		line := func(of []string) string {
			if i < len(of) {
				return of[i]
			}
			return "(nothing more)"
		}
		if !assert.Equal(t, line(wants), line(gots), "%s:%d", file, i+1) {
			t.Logf("all that was printed:\n%s", got)
			return
		}
	}
}
