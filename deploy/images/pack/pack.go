// SPDX-License-Identifier: Apache-2.0

// Package pack makes container images out of static binaries and plain files, without a container
// engine and without a base image, and saves them as a tarball for a local node or pushes them to a
// registry.
//
// An image built twice from the same input has the same digest: times are fixed and files are
// sorted.
package pack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// DefaultUser is the numeric user and group of an image that does not choose its own. It is numeric
// because the restricted Pod Security level with runAsNonRoot cannot verify a name.
const DefaultUser = "65532:65532"

// Image says what goes into an image.
type Image struct {
	// Files are laid into the image's only layer; their parent directories come by themselves.
	Files []File
	// Entrypoint is the program with its fixed arguments; it is required.
	Entrypoint []string
	// Cmd are default arguments that a pod's args replace.
	Cmd []string
	// User is "uid[:gid]"; empty means DefaultUser.
	User string
	// Env and Labels go into the image's configuration.
	Env    map[string]string
	Labels map[string]string
	// WorkingDir is the directory the program starts in; empty means "/".
	WorkingDir string
	// ExposedPorts is documentation for readers of the image, each like "8080/tcp".
	ExposedPorts []string
	// Architecture is a GOARCH; empty means that of this machine.
	Architecture string
}

// Program is the usual image: one static binary, found on this machine at path, that is the
// entrypoint.
func Program(path string) Image {
	inside := "/" + filepath.Base(path)
	return Image{
		Files:      []File{{Path: inside, Source: path, Mode: 0o755}},
		Entrypoint: []string{inside},
	}
}

// Build assembles the image.
func (i Image) Build() (v1.Image, error) {
	if len(i.Entrypoint) == 0 {
		return nil, errors.New("build image: no entrypoint given")
	}
	layer, err := newLayer(i.Files)
	if err != nil {
		return nil, fmt.Errorf("build image of %s: %w", i.Entrypoint[0], err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("build image of %s: add layer: %w", i.Entrypoint[0], err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("build image of %s: read its configuration: %w", i.Entrypoint[0], err)
	}
	file = file.DeepCopy()
	file.OS = "linux"
	file.Architecture = or(i.Architecture, runtime.GOARCH)
	file.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	file.Config = i.config()
	image, err = mutate.ConfigFile(image, file)
	if err != nil {
		return nil, fmt.Errorf("build image of %s: set its configuration: %w", i.Entrypoint[0], err)
	}
	return image, nil
}

func (i Image) config() v1.Config {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin:/"}
	for _, key := range slices.Sorted(maps.Keys(i.Env)) {
		env = append(env, key+"="+i.Env[key])
	}
	ports := make(map[string]struct{}, len(i.ExposedPorts))
	for _, port := range i.ExposedPorts {
		ports[port] = struct{}{}
	}
	return v1.Config{
		Entrypoint:   i.Entrypoint,
		Cmd:          i.Cmd,
		User:         or(i.User, DefaultUser),
		Env:          env,
		Labels:       i.Labels,
		WorkingDir:   or(i.WorkingDir, "/"),
		ExposedPorts: ports,
	}
}

// Save writes the image under the reference (such as "localhost/sidestep/manager:dev") as a tarball
// that "ctr image import" and "docker load" read. The file appears under its name only when it is
// complete.
func Save(path, reference string, image v1.Image) error {
	tag, err := name.NewTag(reference)
	if err != nil {
		return fmt.Errorf("save image: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("save image %s: %w", reference, err)
	}
	defer os.Remove(file.Name()) // only finds something after an error
	err = tarball.Write(tag, image, file)
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return fmt.Errorf("save image %s: %w", reference, err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("save image %s: %w", reference, err)
	}
	return nil
}

// Push sends the image to the registry that the reference names, with the credentials that "docker
// login" left in the user's configuration. It returns the digest under which the registry has it.
func Push(ctx context.Context, reference string, image v1.Image) (v1.Hash, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("push image: %w", err)
	}
	err = remote.Write(ref, image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return v1.Hash{}, fmt.Errorf("push image %s (log in to %s first, if it asks for credentials): %w",
			reference, ref.Context().RegistryStr(), err)
	}
	return image.Digest()
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
