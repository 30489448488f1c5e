// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// indexAge is how long an index is used before it is fetched again.
const indexAge = 24 * time.Hour

// Cache is a directory with downloaded kernels, and with an index of the packaged ones.
type Cache struct {
	Dir string
	Log *slog.Logger
}

// Kernel is one that was fetched.
type Kernel struct {
	Series  string // 6.12
	Version string // the package's, 6.12.117-1~deb12u1
	Image   string // path of vmlinuz
	Modules string // directory with the modules, in directories
}

// Update fetches the index, if the one in the cache is old. Without a network the old one is used.
func (c *Cache) Update(ctx context.Context) error {
	stamp := filepath.Join(c.Dir, "apt", "updated")
	info, err := os.Stat(stamp)
	if err == nil && time.Since(info.ModTime()) < indexAge {
		return nil
	}
	known := err == nil
	err = c.fetchIndex(ctx)
	if err != nil && known && ctx.Err() == nil {
		c.Log.Warn("the index of Debian's kernels cannot be fetched; using the old one", "from",
			info.ModTime().Format(time.DateOnly), "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

func (c *Cache) fetchIndex(ctx context.Context) error {
	mirror, err := FindMirror(os.DirFS("/etc"))
	if err != nil {
		return err
	}
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, "apt", dir), 0o755); err != nil {
			return fmt.Errorf("make the cache: %w", err)
		}
	}
	var list strings.Builder
	for _, s := range []struct{ uri, suite string }{
		{mirror.Security, "bullseye-security"}, // 5.10
		{mirror.Security, "bookworm-security"}, // 6.1, 6.12
		{mirror.Archive, "trixie-backports"},   // what is newest
	} {
		fmt.Fprintf(&list, "deb [signed-by=%s] %s %s main\n", keyring, s.uri, s.suite)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "apt", "sources.list"), []byte(list.String()),
		0o644); err != nil {
		return fmt.Errorf("write the sources for apt: %w", err)
	}
	c.Log.Info("fetching the index of Debian's kernels")
	_, err = c.apt(ctx, "", "apt-get", "-qq", "update")
	return err
}

// apt runs one of apt's programs on the cache instead of on the machine.
func (c *Cache) apt(ctx context.Context, dir, program string, args ...string) (string, error) {
	apt := filepath.Join(c.Dir, "apt")
	options := []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(apt, "sources.list"), "-o",
		"Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(apt, "lists"), "-o", "Dir::Cache=" +
			filepath.Join(apt, "cache"),
		"-o", "Acquire::Retries=3",
	}
	if os.Geteuid() == 0 {
		options = append(options, "-o", "APT::Sandbox::User=root") // the cache belongs to us
	}
	return run(ctx, dir, program, append(options, args...)...)
}

func run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(failed.String()))
	}
	return string(out), nil
}

// Kernel returns the newest kernel of a series such as 6.1, or of all (Newest), from the cache or
// from Debian.
func (c *Cache) Kernel(ctx context.Context, series string) (Kernel, error) {
	found, err := c.resolve(ctx, series)
	if err != nil {
		return Kernel{}, err
	}
	home := filepath.Join(c.Dir, "kernels", series)
	dir := filepath.Join(home, found.name+"_"+found.version)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		c.Log.Info("fetching a kernel", "package", found.name, "version", found.version)
		err = c.fetch(ctx, found, dir)
		if err != nil {
			return Kernel{}, fmt.Errorf("fetch kernel %s: %w", found.name, err)
		}
	}
	if err := keepOnly(home, filepath.Base(dir)); err != nil {
		return Kernel{}, err
	}
	k := Kernel{Series: found.series(), Version: found.version}
	for into, patterns := range map[*string][]string{
		&k.Image:   {"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"},
		&k.Modules: {"lib/modules/*/kernel", "usr/lib/modules/*/kernel"},
	} {
		for _, pattern := range patterns {
			if paths, err := filepath.Glob(filepath.Join(dir, pattern)); err == nil && len(paths) == 1 {
				*into = paths[0]
			}
		}
		if *into == "" {
			return Kernel{}, fmt.Errorf("package %s has none of %s; its layout has changed", found.name,
				strings.Join(patterns, ", "))
		}
	}
	return k, nil
}

func (c *Cache) resolve(ctx context.Context, series string) (packaged, error) {
	if err := c.Update(ctx); err != nil {
		return packaged{}, fmt.Errorf("list Debian's kernels: %w", err)
	}
	names, err := c.apt(ctx, "", "apt-cache", "pkgnames", "linux-image-")
	if err != nil {
		return packaged{}, err
	}
	var images []string
	for name := range strings.Lines(names) {
		if name = strings.TrimSpace(name); imageName.MatchString(name) {
			images = append(images, name)
		}
	}
	index, err := c.apt(ctx, "", "apt-cache", append([]string{"show"}, images...)...)
	if err != nil {
		return packaged{}, err
	}
	return pick(index, series)
}

// fetch makes dir, all of it or nothing.
func (c *Cache) fetch(ctx context.Context, p packaged, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	partial, err := os.MkdirTemp(filepath.Dir(dir), ".partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	if _, err := c.apt(ctx, partial, "apt-get",
		append([]string{"-qq", "download"}, p.archives()...)...); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(partial, "*.deb"))
	if err != nil {
		return err
	}
	tree := filepath.Join(partial, "tree")
	for _, archive := range archives {
		if _, err := run(ctx, "", "dpkg-deb", "-x", archive, tree); err != nil {
			return err
		}
	}
	return os.Rename(tree, dir)
}

// keepOnly removes the kernels that a newer one has replaced, and what an interrupted fetch has
// left.
func keepOnly(home, name string) error {
	entries, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != name {
			if err := os.RemoveAll(filepath.Join(home, e.Name())); err != nil {
				return fmt.Errorf("remove an old kernel: %w", err)
			}
		}
	}
	return nil
}
