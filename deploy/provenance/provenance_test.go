// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestStatementNamesFilesCommitAndModules(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program") // one with dependencies
	said, err := exec.Command("go", "build", "-o", program, "../images").CombinedOutput()
	require.NoError(t, err, string(said))
	text := filepath.Join(t.TempDir(), "chart.tgz")
	require.NoError(t, os.WriteFile(text, []byte("chart"), 0o600))
	r := release{repository: "https://example.org/sidestep", commit: strings.Repeat("a", 40), version: "v1.2.3",
		builder: "https://example.org/builder"}
	var out bytes.Buffer
	require.NoError(t, r.write(&out, []string{program, text}))
	var s statement
	require.NoError(t, json.Unmarshal(out.Bytes(), &s))
	assert.Equal(t, "https://in-toto.io/Statement/v1", s.Type)
	assert.Equal(t, "https://slsa.dev/provenance/v1", s.PredicateType)
	require.Len(t, s.Subject, 2)
	assert.Equal(t, descriptor{Name: "chart.tgz", Digest: map[string]string{"sha256": "cc57fc1903e444cf6a726490b43b27ee9f87facc037f86872201847c565b45fb"}}, s.Subject[1])
	d := s.Predicate.BuildDefinition
	assert.Equal(t, descriptor{URI: "git+https://example.org/sidestep",
		Digest: map[string]string{"gitCommit": r.commit}}, d.ResolvedDependencies[0])
	var modules []string
	for _, m := range d.ResolvedDependencies[1:] {
		modules = append(modules, m.URI)
		assert.Len(t, m.Digest["dirHash1"], 64, m.URI)
	}
	assert.Contains(t, strings.Join(modules, "\n"), "pkg:golang/github.com/spf13/cobra@v")
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	var out bytes.Buffer
	assert.ErrorContains(t, (&release{}).write(&out, nil), "--commit")
	r := release{repository: "r", commit: strings.Repeat("a", 40), version: "v1", builder: "b"}
	assert.ErrorIs(t, r.write(&out, []string{filepath.Join(t.TempDir(), "none")}), os.ErrNotExist)
	assert.Empty(t, out.String())
}
