// SPDX-License-Identifier: Apache-2.0

// Package initramfs writes the archive from which a kernel makes its first file system: cpio's
// "newc" format, described in the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
package initramfs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// The kinds of files, as in stat(2).
const (
	directory = 0o040000
	character = 0o020000
	regular   = 0o100000
	symlink   = 0o120000
)

// Writer makes an archive. Directories are made as they are needed.
type Writer struct {
	out   *bufio.Writer
	inode int
	made  map[string]bool
	err   error
}

// NewWriter starts an archive with the devices that a program has open before anything is mounted.
func NewWriter(out io.Writer) *Writer {
	w := &Writer{out: bufio.NewWriterSize(out, 1<<20), made: map[string]bool{}}
	w.device("dev/console", 5, 1)
	w.device("dev/null", 1, 3)
	return w
}

// Dir makes a directory and those above it.
func (w *Writer) Dir(name string) {
	name = strings.Trim(path.Clean(name), "/")
	if name == "." || name == "" || w.made[name] {
		return
	}
	w.Dir(path.Dir(name))
	w.made[name] = true
	w.header(name, directory|0o755, 0, 0, 0)
}

// File adds an executable file.
func (w *Writer) File(name string, data []byte) {
	w.Dir(path.Dir(name))
	w.header(name, regular|0o755, int64(len(data)), 0, 0)
	w.write(data)
	w.pad(int64(len(data)))
}

// Link adds a symbolic link.
func (w *Writer) Link(name, target string) {
	w.Dir(path.Dir(name))
	w.header(name, symlink|0o777, int64(len(target)), 0, 0)
	w.write([]byte(target))
	w.pad(int64(len(target)))
}

// Copy adds a file of this machine.
func (w *Writer) Copy(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.Dir(path.Dir(name))
	w.header(name, regular|0o755, info.Size(), 0, 0)
	n, err := io.Copy(w.out, f)
	if err == nil && n != info.Size() {
		err = fmt.Errorf("%s has changed while it was read", from)
	}
	w.pad(info.Size())
	return err
}

// Close ends the archive, and returns the first error of all calls.
func (w *Writer) Close() error {
	w.header("TRAILER!!!", 0, 0, 0, 0)
	if err := w.out.Flush(); w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return fmt.Errorf("write initramfs: %w", w.err)
	}
	return nil
}

func (w *Writer) device(name string, major, minor int) {
	w.Dir(path.Dir(name))
	w.header(name, character|0o600, 0, major, minor)
}

func (w *Writer) header(name string, mode int, size int64, major, minor int) {
	if size > 1<<32-1 && w.err == nil {
		w.err = fmt.Errorf("%s is too large", name)
	}
	w.inode++
	name = strings.TrimPrefix(name, "/")
	h := "070701"
	// Inode, mode, uid, gid, links, mtime, size, the device's two numbers, those of a device file,
	// the name's length, checksum.
	for _, n := range []int64{int64(w.inode), int64(mode), 0, 0, 1, 0, size, 0, 0, int64(major),
		int64(minor), int64(len(name) + 1), 0} {
		h += fmt.Sprintf("%08X", n)
	}
	h += name + "\x00"
	w.write([]byte(h))
	w.pad(int64(len(h)))
}

func (w *Writer) pad(after int64) { w.write(make([]byte, -after&3)) }

func (w *Writer) write(data []byte) {
	if _, err := w.out.Write(data); err != nil && w.err == nil {
		w.err = err
	}
}
