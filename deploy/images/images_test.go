// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bin returns a directory with a small static program under each of the given names.
func bin(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte("package main\nfunc main() {}\n"), 0o600))
	built := filepath.Join(dir, "built")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", built, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	for _, name := range names {
		require.NoError(t, os.Link(built, filepath.Join(dir, name)))
	}
	return dir
}

func images(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var stdout bytes.Buffer
	command := newCommand(&stdout)
	command.SetArgs(args)
	err := command.ExecuteContext(t.Context())
	return stdout.String(), err
}

func TestTarballsHoldTheImagesThatTheChartNames(t *testing.T) {
	out := filepath.Join(t.TempDir(), "new", "images")
	printed, err := images(t, "--bin", bin(t, "sidestep-manager", "sidestep-nodeagent", "apps"),
		"--out", out, "--tag", "v9", "--apps")
	require.NoError(t, err)
	for program, user := range map[string]string{"manager": "65532:65532", "nodeagent": "0:0",
		"apps": "65532:65532"} {
		reference := "docker.io/sidestep/" + program + ":v9"
		assert.Contains(t, printed, reference)
		tag, err := name.NewTag(reference)
		require.NoError(t, err)
		image, err := tarball.ImageFromPath(filepath.Join(out, program+".tar"), &tag)
		require.NoError(t, err)
		config, err := image.ConfigFile()
		require.NoError(t, err)
		assert.Equal(t, user, config.Config.User, program)
	}
}

func TestSampleWorkloadsArePackedOnlyWhenAskedFor(t *testing.T) {
	printed, err := images(t, "--bin", bin(t, "sidestep-manager", "sidestep-nodeagent"), "--out", t.TempDir())
	require.NoError(t, err)
	assert.Equal(t, 2, strings.Count(printed, "\n"))
}

func TestImagesArePushedToWhereTheChartLooksForThem(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	_, err := images(t, "--bin", bin(t, "sidestep-manager", "sidestep-nodeagent"), "--push", address,
		"--tag", "v9")
	require.NoError(t, err)
	for _, program := range []string{"manager", "nodeagent"} {
		reference, err := name.ParseReference(address + "/sidestep/" + program + ":v9")
		require.NoError(t, err)
		_, err = remote.Head(reference)
		assert.NoError(t, err)
	}
}

func TestWhatCannotRunInAnEmptyImageIsRefused(t *testing.T) {
	_, err := images(t, "--bin", t.TempDir(), "--out", t.TempDir())
	assert.ErrorContains(t, err, "sidestep-manager is missing")

	dir := t.TempDir()
	require.NoError(t, os.Symlink("/bin/true", filepath.Join(dir, "sidestep-manager")))
	_, err = images(t, "--bin", dir, "--out", t.TempDir())
	assert.ErrorContains(t, err, "dynamically linked")

	_, err = images(t)
	assert.ErrorContains(t, err, "at least one of the flags")
}
