// SPDX-License-Identifier: Apache-2.0

// Package module reads kernel modules and finds the order in which they can be loaded. It needs no
// tools or indexes of a running system.
package module

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// Module is one that the kernel can load.
type Module struct {
	Name string
	Data []byte // ELF, not compressed
}

// suffixes are the suffixes of module files, with the program that decompresses them.
var suffixes = map[string]string{".ko": "", ".ko.xz": "xz", ".ko.zst": "zstd", ".ko.gz": "gzip"}

// Load returns the modules after all on which they depend. It leaves out those that are missing,
// because they are built into the kernel or because it does not have them.
func Load(tree fs.FS, names ...string) ([]Module, error) {
	l := loader{tree: tree, paths: map[string]string{}, done: map[string]bool{}}
	err := fs.WalkDir(tree, ".", func(p string, e fs.DirEntry, err error) error {
		if name, _, ok := split(p); ok && err == nil && !e.IsDir() {
			l.paths[name] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	for _, name := range names {
		if err := l.add(canonical(name)); err != nil {
			return nil, err
		}
	}
	return l.order, nil
}

type loader struct {
	tree  fs.FS
	paths map[string]string // by name
	done  map[string]bool
	order []Module
}

func (l *loader) add(name string) error {
	p, ok := l.paths[name]
	if !ok || l.done[name] {
		return nil
	}
	l.done[name] = true
	data, err := l.read(p)
	if err != nil {
		return fmt.Errorf("read module %s: %w", name, err)
	}
	for _, needed := range Depends(data) {
		if err := l.add(needed); err != nil {
			return err
		}
	}
	l.order = append(l.order, Module{name, data})
	return nil
}

func (l *loader) read(p string) ([]byte, error) {
	data, err := fs.ReadFile(l.tree, p)
	if err != nil {
		return nil, err
	}
	_, program, _ := split(p)
	if program == "" {
		return data, nil
	}
	cmd := exec.Command(program, "-dc")
	cmd.Stdin = bytes.NewReader(data)
	data, err = cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w (install it)", err)
	}
	return data, err
}

// split returns a module's name and the program that decompresses it.
func split(p string) (name, program string, ok bool) {
	base := path.Base(p)
	for suffix, program := range suffixes {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return canonical(name), program, true
		}
	}
	return "", "", false
}

// canonical returns the name by which the kernel knows a module. File names may have dashes.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Depends names the modules that one needs, by the entry "depends" in its section .modinfo.
func Depends(data []byte) []string {
	const key = "\x00depends="
	at := bytes.Index(data, []byte(key))
	if at < 0 {
		return nil
	}
	value, _, _ := bytes.Cut(data[at+len(key):], []byte{0})
	names := strings.FieldsFunc(string(value), func(r rune) bool { return r == ',' })
	for i := range names {
		names[i] = canonical(names[i])
	}
	slices.Sort(names)
	return names
}
