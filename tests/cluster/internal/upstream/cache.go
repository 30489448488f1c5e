// SPDX-License-Identifier: Apache-2.0

// Package upstream builds the programs that a cluster runs from their Go modules, once for each
// version, and keeps them in a cache.
package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cache is a directory of programs and images.
type Cache struct{ Dir string }

// Path is the directory that holds, or will hold, the programs of a source.
func (c Cache) Path(source Source) string {
	name := strings.ToLower(source.Name) + "-" + source.Version + "-" + runtime.GOARCH
	if len(source.Files) > 0 { // part of it is ours, and may change without its version
		hash := sha256.New()
		for _, file := range slices.Sorted(maps.Keys(source.Files)) {
			hash.Write(source.Files[file])
		}
		name += "-" + hex.EncodeToString(hash.Sum(nil))[:8]
	}
	return filepath.Join(c.Dir, name)
}

// Has reports whether all programs of a source are built.
func (c Cache) Has(source Source) bool {
	for program := range source.Programs {
		if _, err := os.Stat(filepath.Join(c.Path(source), program)); err != nil {
			return false
		}
	}
	return true
}

// Lock keeps other runs of the tool from building at the same time; the returned function lets
// them.
func (c Cache) Lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	dir, err := os.Open(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	return func() { dir.Close() }, nil
}

// Build makes a source's programs. They appear in the cache all at once, when the last of them is
// complete.
func (c Cache) Build(ctx context.Context, source Source) error {
	work, err := c.scratch()
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	module, programs := filepath.Join(work, "module"), filepath.Join(work, "programs")
	for _, dir := range []string{module, programs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make room for the build: %w", err)
		}
	}
	if err := source.layOut(ctx, module); err != nil {
		return err
	}
	if err := source.compile(ctx, module, programs); err != nil {
		return err
	}
	final := c.Path(source)
	if err := os.RemoveAll(final); err != nil { // a directory that lacks a program
		return fmt.Errorf("clear the way for %s: %w", source.Name, err)
	}
	if err := os.Rename(programs, final); err != nil {
		return fmt.Errorf("put %s into the cache: %w", source.Name, err)
	}
	return nil
}

// scratch creates a directory for a build, and removes those of builds that were killed. The caller
// holds the lock.
func (c Cache) scratch() (string, error) {
	const prefix = ".build-"
	left, _ := filepath.Glob(filepath.Join(c.Dir, prefix+"*"))
	for _, dir := range left {
		os.RemoveAll(dir)
	}
	dir, err := os.MkdirTemp(c.Dir, prefix)
	if err != nil {
		return "", fmt.Errorf("make room for the build: %w", err)
	}
	return dir, nil
}

func (s Source) layOut(ctx context.Context, dir string) error {
	if s.Module != "" {
		return prepare(ctx, dir, s)
	}
	for name, content := range s.Files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("lay out the build of %s: %w", s.Name, err)
		}
	}
	return nil
}

// compile builds all programs in one go, so that what they share is compiled once and two links run
// side by side.
func (s Source) compile(ctx context.Context, module, programs string) error {
	names := slices.Sorted(maps.Keys(s.Programs))
	target := programs + "/"
	if len(names) == 1 {
		target = filepath.Join(programs, names[0])
	}
	args := []string{
		"build", "-mod=mod", "-trimpath",
		"-ldflags", strings.Join(append([]string{"-s", "-w"}, s.LinkerFlags...), " "),
		"-o", target,
	}
	for _, name := range names {
		if s.Programs[name] == "." {
			// by file name: its build constraint keeps it out of our own module
			args = append(args, "main.go")
		} else {
			args = append(args, s.Programs[name])
		}
	}
	var output bytes.Buffer
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = module
	command.Env = buildEnv()
	command.Stdout, command.Stderr = &output, &output
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("build %s %s: %w\n%s", s.Name, s.Version, err, lastLines(output.String(), 30))
	}
	return nil
}

// buildEnv makes builds independent of the user's settings for other work.
func buildEnv() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off", "GOOS=linux",
		"GOARCH="+runtime.GOARCH)
}

func lastLines(text string, count int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
