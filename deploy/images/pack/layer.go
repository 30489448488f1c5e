// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one file of an image. Its bytes are Content, or those of the file Source when Content is
// nil.
type File struct {
	// Path is absolute and inside the image.
	Path string
	// Source is a path on this machine.
	Source string
	// Content takes the place of Source.
	Content []byte
	// Mode holds the permission bits; 0 means 0644.
	Mode fs.FileMode
}

// Programs that look up their own user, and those that write temporary files, expect these of any
// image.
var standardFiles = []File{
	{Path: "/etc/passwd", Content: []byte(
		"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
	{Path: "/etc/group", Content: []byte("root:x:0:\nnonroot:x:65532:\n")},
}

func newLayer(files []File) (v1.Layer, error) {
	entries := slices.Clone(files)
	for _, standard := range standardFiles {
		if !slices.ContainsFunc(files, func(f File) bool { return path.Clean(f.Path) == standard.Path }) {
			entries = append(entries, standard)
		}
	}
	for i, file := range entries {
		if !path.IsAbs(file.Path) {
			return nil, fmt.Errorf("path %q inside the image is not absolute", file.Path)
		}
		entries[i].Path = path.Clean(file.Path)
	}
	slices.SortFunc(entries, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(entries); i++ {
		if entries[i].Path == entries[i-1].Path {
			return nil, fmt.Errorf("path %s inside the image is given twice", entries[i].Path)
		}
	}

	var archive bytes.Buffer
	if err := writeArchive(&archive, entries); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed),
		tarball.WithCompressedCaching)
}

func writeArchive(w io.Writer, files []File) error {
	archive := tar.NewWriter(w)
	made := map[string]bool{"/": true}
	if err := writeDir(archive, "/tmp", 0o1777, made); err != nil {
		return err
	}
	for _, file := range files {
		if err := writeDir(archive, path.Dir(file.Path), 0o755, made); err != nil {
			return err
		}
		if err := writeFile(archive, file); err != nil {
			return err
		}
	}
	return archive.Close()
}

func writeDir(archive *tar.Writer, dir string, mode int64, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := writeDir(archive, path.Dir(dir), 0o755, made); err != nil {
		return err
	}
	made[dir] = true
	return archive.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir,
		Name:     strings.TrimPrefix(dir, "/") + "/",
		Mode:     mode,
		ModTime:  time.Unix(0, 0),
		Format:   tar.FormatPAX,
	})
}

func writeFile(archive *tar.Writer, file File) error {
	content := file.Content
	if content == nil {
		var err error
		if content, err = os.ReadFile(file.Source); err != nil {
			return fmt.Errorf("read the file for %s: %w", file.Path, err)
		}
	}
	mode := file.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	header := &tar.Header{
		Typeflag: tar.TypeReg,
		Name:     strings.TrimPrefix(file.Path, "/"),
		Mode:     int64(mode),
		Size:     int64(len(content)),
		ModTime:  time.Unix(0, 0),
		Format:   tar.FormatPAX,
	}
	if err := archive.WriteHeader(header); err != nil {
		return fmt.Errorf("archive %s: %w", file.Path, err)
	}
	if _, err := archive.Write(content); err != nil {
		return fmt.Errorf("archive %s: %w", file.Path, err)
	}
	return nil
}
