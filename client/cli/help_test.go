// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHelp(t *testing.T) {
	for _, command := range []string{
		"", "connect", "quit", "status", "list", "intercept", "wiretap", "leave", "helm",
		"helm install", "helm upgrade", "helm uninstall",
		"uninstall", "version", "completion", "config view", "loglevel", "gather-logs", "list-contexts",
		"list-namespaces",
	} {
		t.Run("help of "+command, func(t *testing.T) {
			text := newWorld(t).transcript(append(strings.Fields(command), "--help")...)
			golden(t, strings.TrimSpace("help "+command), text)
			for line := range strings.Lines(text) {
				assert.LessOrEqual(t, len(strings.TrimRight(line, "\n")), 135, line)
			}
		})
	}
}

func TestHelpFitsTheTerminal(t *testing.T) {
	for _, command := range []string{"", "connect", "list", "intercept", "wiretap", "leave",
		"helm install", "uninstall", "gather-logs", "completion"} {
		for _, columns := range []int{40, 60, 80, 100, 200} {
			w := newWorld(t)
			w.IsTerminal = func(any) (int, bool) { return columns, true }
			require.Zero(t, w.do(append(strings.Fields(command), "--help")...))
			for line := range strings.Lines(w.stdout.String()) {
				line = strings.TrimRight(line, "\n")
				if strings.HasPrefix(line, "  sidestep ") || strings.HasPrefix(line, "  source ") ||
					strings.HasPrefix(line, "    --set ") ||
					strings.Count(line, " ") == len(line)-len(strings.TrimLeft(line, " ")) {
					continue // a command line to be copied, or one long word
				}
				assert.LessOrEqual(t, len([]rune(line)), max(columns, 40), "%s in %d columns: %s",
					command, columns, line)
			}
			assert.Contains(t, w.stdout.String(), "\nExamples:\n", command)
			// Nothing is lost by breaking lines.
			wide := newWorld(t)
			require.Zero(t, wide.do(append(strings.Fields(command), "--help")...))
			words := func(text string) []string { return strings.Fields(strings.ReplaceAll(text, "#", "")) }
			assert.Equal(t, words(wide.stdout.String()), words(w.stdout.String()), command)
		}
	}
}

func TestTheNameOfTheProgramIsTheOneItWasCalledBy(t *testing.T) {
	assert.Equal(t, "telepresence", programName([]string{"/usr/local/bin/telepresence"}))
	assert.Equal(t, "telepresence", programName([]string{"telepresence.exe"}))
	assert.Equal(t, "sidestep", programName([]string{"./sidestep-linux-amd64"}))
	assert.Equal(t, "sidestep", programName(nil))

	w := newWorld(t)
	w.Name = "telepresence"
	golden(t, "help telepresence", w.transcript("--help"))
	assert.Equal(t, exitUsage, w.do("intercept"))
	assert.Contains(t, w.stderr.String(), "telepresence intercept: error: ")
	assert.NotContains(t, w.stderr.String(), "sidestep")
	for _, command := range []string{"intercept", "wiretap", "list", "leave", "connect", "quit",
		"helm install", "helm upgrade", "helm uninstall", "version", "completion bash", "config view",
		"loglevel", "gather-logs"} {
		assert.Zero(t, w.do(append(strings.Fields(command), "--help")...))
		assert.NotContains(t, strings.ReplaceAll(w.stdout.String(), `(default "sidestep")`, ""),
			"sidestep", command)
	}
}

func TestWithoutACommandTheHelpIsPrinted(t *testing.T) {
	w := newWorld(t)
	assert.Zero(t, w.do())
	assert.Contains(t, w.stdout.String(), "Traffic commands:")
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		w := newWorld(t)
		assert.Zero(t, w.do("completion", shell))
		assert.Contains(t, w.stdout.String(), "sidestep", shell)
		assert.Empty(t, w.stderr.String())
	}
}
