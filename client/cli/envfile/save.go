// SPDX-License-Identifier: Apache-2.0

package envfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is a file that will be written. Environments contain secrets, so its mode is 0600.
type File struct {
	path string
	temp *os.File // nil: the existing file is written to, because it is not a regular file, such as /dev/fd/63
	open *os.File
}

// Create makes sure that a file can be written, before anything else is done for it. An existing
// file stays until Write.
func Create(path string) (*File, error) {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved // a link stays a link
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("write %s: it is a directory", path)
	case err == nil && !info.Mode().IsRegular():
		open, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("write the environment: %w", err)
		}
		return &File{path: path, open: open}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("write the environment: %w", err)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return nil, fmt.Errorf("write the environment to %s: %w", path, err)
	}
	return &File{path: path, temp: temp}, nil
}

// Write replaces the file atomically: readers see the old contents or the new ones.
func (f *File) Write(text []byte) error {
	if f.open != nil {
		_, err := f.open.Write(text)
		return f.explain(errors.Join(err, f.open.Close()))
	}
	_, err := f.temp.Write(text)
	if err == nil {
		err = f.temp.Sync()
	}
	if err = errors.Join(err, f.temp.Close()); err == nil {
		err = os.Rename(f.temp.Name(), f.path)
	}
	if err != nil {
		_ = os.Remove(f.temp.Name())
	}
	f.temp = nil
	return f.explain(err)
}

func (f *File) explain(err error) error {
	if err != nil {
		return fmt.Errorf("write the environment to %s: %w", f.path, err)
	}
	return nil
}

// Discard removes the temporary file if nothing was written.
func (f *File) Discard() {
	if f.temp != nil {
		_ = f.temp.Close()
		_ = os.Remove(f.temp.Name())
		f.temp = nil
	}
	if f.open != nil {
		_ = f.open.Close()
	}
}
