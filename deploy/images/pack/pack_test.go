// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"archive/tar"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server")
	require.NoError(t, os.WriteFile(path, []byte("not really a program"), 0o600))
	return path
}

func build(t *testing.T, image Image) v1.Image {
	t.Helper()
	built, err := image.Build()
	require.NoError(t, err)
	return built
}

// layout returns the headers of the only layer by name.
func layout(t *testing.T, image v1.Image) map[string]*tar.Header {
	t.Helper()
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	content, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer content.Close()
	headers := map[string]*tar.Header{}
	for archive := tar.NewReader(content); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		require.NoError(t, err)
		headers[header.Name] = header
	}
}

func TestAProgramRunsAsItsEntrypointAndAnUnprivilegedUser(t *testing.T) {
	image := build(t, Program(program(t)))

	file, err := image.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, []string{"/server"}, file.Config.Entrypoint)
	assert.Equal(t, "65532:65532", file.Config.User)
	assert.Equal(t, "linux", file.OS)
	assert.NotEmpty(t, file.Architecture)

	headers := layout(t, image)
	require.Contains(t, headers, "server")
	assert.EqualValues(t, 0o755, headers["server"].Mode)
	require.Contains(t, headers, "tmp/")
	assert.EqualValues(t, 0o1777, headers["tmp/"].Mode)
	assert.Contains(t, headers, "etc/passwd")
}

func TestTheConfigurationIsWhatWasAskedFor(t *testing.T) {
	image := build(t, Image{
		Files:        []File{{Path: "/srv/www/index.html", Content: []byte("hello")}},
		Entrypoint:   []string{"/bin/serve", "--dir", "/srv"},
		Cmd:          []string{"--port", "80"},
		User:         "0",
		Env:          map[string]string{"B": "2", "A": "1"},
		Labels:       map[string]string{"version": "dev"},
		WorkingDir:   "/srv",
		ExposedPorts: []string{"80/tcp"},
		Architecture: "arm64",
	})

	file, err := image.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, []string{"/bin/serve", "--dir", "/srv"}, file.Config.Entrypoint)
	assert.Equal(t, []string{"--port", "80"}, file.Config.Cmd)
	assert.Equal(t, "0", file.Config.User)
	assert.Equal(t, []string{"A=1", "B=2"}, file.Config.Env[1:])
	assert.Equal(t, "dev", file.Config.Labels["version"])
	assert.Equal(t, "/srv", file.Config.WorkingDir)
	assert.Contains(t, file.Config.ExposedPorts, "80/tcp")
	assert.Equal(t, "arm64", file.Architecture)

	headers := layout(t, image)
	assert.Contains(t, headers, "srv/")
	assert.Contains(t, headers, "srv/www/")
	require.Contains(t, headers, "srv/www/index.html")
	assert.EqualValues(t, 0o644, headers["srv/www/index.html"].Mode)
}

func TestTheSameInputGivesTheSameDigest(t *testing.T) {
	spec := Program(program(t))
	first, err := build(t, spec).Digest()
	require.NoError(t, err)
	second, err := build(t, spec).Digest()
	require.NoError(t, err)
	assert.Equal(t, first, second)
}

func TestWrongInputIsRefusedWithTheReason(t *testing.T) {
	for name, test := range map[string]struct {
		image Image
		says  string
	}{
		"no entrypoint":   {Image{}, "no entrypoint"},
		"a relative path": {Image{Entrypoint: []string{"/a"}, Files: []File{{Path: "a"}}}, "not absolute"},
		"a path twice": {Image{Entrypoint: []string{"/a"},
			Files: []File{{Path: "/a"}, {Path: "//a"}}}, "given twice"},
		"a source not present": {Program("/does/not/exist"), "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.image.Build()
			assert.ErrorContains(t, err, test.says)
		})
	}
}

func TestASavedImageIsReadBackUnderItsName(t *testing.T) {
	image := build(t, Program(program(t)))
	path := filepath.Join(t.TempDir(), "server.tar")
	require.NoError(t, Save(path, "localhost/sidestep/server:dev", image))

	tag, err := name.NewTag("localhost/sidestep/server:dev")
	require.NoError(t, err)
	loaded, err := tarball.ImageFromPath(path, &tag)
	require.NoError(t, err)
	wanted, err := image.ConfigName()
	require.NoError(t, err)
	got, err := loaded.ConfigName()
	require.NoError(t, err)
	assert.Equal(t, wanted, got)

	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, left, 1, "a temporary file was left behind")
}

func TestAPushedImageIsInTheRegistry(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	reference := strings.TrimPrefix(server.URL, "http://") + "/sidestep/server:dev"
	image := build(t, Program(program(t)))

	digest, err := Push(t.Context(), reference, image)
	require.NoError(t, err)

	ref, err := name.ParseReference(reference)
	require.NoError(t, err)
	pulled, err := remote.Image(ref)
	require.NoError(t, err)
	got, err := pulled.Digest()
	require.NoError(t, err)
	assert.Equal(t, digest, got)
}

func TestAPushThatFailsNamesTheRegistry(t *testing.T) {
	server := httptest.NewServer(registry.New())
	host := strings.TrimPrefix(server.URL, "http://")
	server.Close()
	_, err := Push(t.Context(), host+"/sidestep/server:dev", build(t, Program(program(t))))
	assert.ErrorContains(t, err, "log in to "+host)
}
