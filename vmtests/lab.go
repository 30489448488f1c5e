// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sidestep.dev/sidestep/vmtests/debian"
	"sidestep.dev/sidestep/vmtests/guest"
	"sidestep.dev/sidestep/vmtests/initramfs"
	"sidestep.dev/sidestep/vmtests/machine"
	"sidestep.dev/sidestep/vmtests/module"
	"sidestep.dev/sidestep/vmtests/report"
)

// modules are those that Debian's kernels have not built in and that the tests, or the datapath,
// use.
var modules = []string{
	"veth", "dummy", "bridge", "macvlan", "ipvlan", "sch_ingress", "cls_bpf", "act_bpf", "inet_diag",
	"tcp_diag", "tls", "tun",
}

// lab is what runs on all kernels.
type lab struct {
	options
	out     io.Writer
	log     *slog.Logger
	work    string // directory
	cache   *debian.Cache
	convert string // path of test2json
	init    string // path of the machines' first process
	tests   []built
	fetch   sync.Mutex // held while a kernel is fetched and packed
}

// built is a package whose test binary has been built.
type built struct {
	pkg
	binary string
}

// build makes the programs.
func (l *lab) build(ctx context.Context) error {
	tool, err := command(ctx, "go", "tool", "-n", "test2json")
	if err != nil {
		return err
	}
	l.convert = strings.TrimSpace(tool)
	l.init = filepath.Join(l.work, "init")
	if _, err := command(ctx, "go", "build", "-ldflags=-s -w", "-o", l.init,
		"sidestep.dev/sidestep/vmtests/init"); err != nil {
		return err
	}
	packages, err := discover(ctx, l.packages)
	if err != nil {
		return err
	}
	for _, p := range packages {
		b := built{p, filepath.Join(l.work, strings.ReplaceAll(p.ImportPath, "/", "-")+".test")}
		if _, err := command(ctx, "go", "test", "-c", "-ldflags=-s -w", "-o", b.binary,
			p.ImportPath); err != nil {
			return err
		}
		l.tests = append(l.tests, b)
	}
	if len(l.tests) == 0 {
		return errors.New("no package has tests for kernels")
	}
	return nil
}

// command runs a program of Go's without cgo, so that what it makes runs anywhere.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.TrimSpace(failed.String()))
	}
	return string(out), nil
}

// kernel runs everything on one kernel.
func (l *lab) kernel(ctx context.Context, name string) (*report.Kernel, error) {
	k := &report.Kernel{Name: name}
	begin, told := time.Now(), map[string]bool{}
	results, into := io.Pipe()
	finished := make(chan error, 1)
	go func() {
		finished <- l.reader(k, told).Read(ctx, results)
		_, _ = io.Copy(io.Discard, results)
	}()
	run := l.virtual
	if name == native {
		run = l.native
	}
	console, err := run(ctx, k, into)
	_ = into.Close()
	if err := errors.Join(err, <-finished); err != nil && !errors.Is(err, machine.ErrRunning) {
		return nil, err
	}
	if err != nil {
		k.Problems = append(k.Problems, err.Error())
	}
	if !k.Done && console != "" {
		k.Problems = append(k.Problems, "the console's end:\n"+indent(console))
	}
	fmt.Fprintf(l.out, "%s, in %s\n", k.Summary(), time.Since(begin).Round(100*time.Millisecond))
	l.tell(k, func(f report.Failure) bool { return !told[f.What] })
	return k, l.remember(k)
}

// tell prints failures.
func (l *lab) tell(k *report.Kernel, which func(report.Failure) bool) {
	for _, f := range k.Failures() {
		if which(f) {
			fmt.Fprintf(l.out, "FAIL on %s: %s\n%s", k.Name, f.What, indent(f.Output))
		}
	}
}

// reader prints the result of each package, and notes which failures it has printed.
func (l *lab) reader(k *report.Kernel, told map[string]bool) *report.Reader {
	r := &report.Reader{Kernel: k, Convert: []string{l.convert}, Passed: func(t report.Test) {
		fmt.Fprintf(l.out, "  %-6s %-4s %6.1fs %s\n", k.Name, t.Outcome, t.Seconds, t.Package)
		l.tell(k, func(f report.Failure) bool {
			is := strings.HasPrefix(f.What, t.Package+" ")
			told[f.What] = told[f.What] || is
			return is
		})
	}}
	if l.verbose {
		r.Log = l.out
	}
	return r
}

// arguments of a test binary.
func (l *lab) arguments() []string {
	args := []string{"-test.v=test2json", "-test.short", "-test.timeout=" + (l.limit * 3 / 4).String()}
	if l.pattern != "" {
		args = append(args, "-test.run="+l.pattern)
	}
	return args
}

func (l *lab) native(ctx context.Context, k *report.Kernel, out io.Writer) (string, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	k.Version = "(where the table was made)"
	guest.Say(out, guest.Release, strings.TrimSpace(string(release)))
	var tests []guest.Test
	for _, b := range l.tests {
		tests = append(tests, guest.Test{Package: b.ImportPath, Binary: b.binary, Dir: b.Dir,
			Args: l.arguments()})
	}
	return "", guest.Run(ctx, out, tests)
}

func (l *lab) virtual(ctx context.Context, k *report.Kernel, out io.Writer) (console string, err error) {
	m, err := l.machine(ctx, k)
	if err != nil {
		return "", err
	}
	defer os.Remove(m.Initramfs)
	fmt.Fprintf(l.out, "booting %s (%s)\n", k.Version, m.Accelerator)
	return m.Run(ctx, l.limit, out)
}

// machine makes one for the kernel.
func (l *lab) machine(ctx context.Context, k *report.Kernel) (machine.Machine, error) {
	l.fetch.Lock()
	defer l.fetch.Unlock()
	found, err := l.cache.Kernel(ctx, k.Name)
	if err != nil {
		return machine.Machine{}, err
	}
	k.Version = found.Version
	m := machine.Machine{Image: found.Image, Memory: l.memory, CPUs: l.cpus, Accelerator: l.accelerator}
	if m.Accelerator == "" {
		if m.Accelerator, err = l.choose(ctx, m); err != nil {
			return m, err
		}
	}
	m.Initramfs = filepath.Join(l.work, "initramfs-"+k.Name)
	return m, l.pack(m.Initramfs, os.DirFS(found.Modules), l.tests)
}

// choose finds out whether KVM can run the kernel.
func (l *lab) choose(ctx context.Context, m machine.Machine) (string, error) {
	m.Initramfs = filepath.Join(l.work, "probe")
	defer os.Remove(m.Initramfs)
	if err := l.pack(m.Initramfs, nil, nil); err != nil {
		return "", err
	}
	return machine.Accelerator(ctx, l.log, l.cache.Dir, m, func(results string) bool {
		for line := range strings.Lines(results) {
			if word, _, ok := guest.ParseMark(line); ok && word == guest.Done {
				return true
			}
		}
		return false
	})
}

// pack writes the file system of a machine.
func (l *lab) pack(to string, tree fs.FS, tests []built) (err error) {
	file, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("write an initramfs: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w := initramfs.NewWriter(file)
	var plan guest.Plan
	if tree != nil {
		loaded, err := module.Load(tree, modules...)
		if err != nil {
			return err
		}
		for _, m := range loaded {
			name := "/lib/" + m.Name + ".ko"
			w.File(name, m.Data)
			plan.Modules = append(plan.Modules, name)
		}
	}
	for _, b := range tests {
		dir := path.Join("/src", b.ImportPath)
		t := guest.Test{Package: b.ImportPath, Binary: path.Join("/tests", filepath.Base(b.binary)),
			Dir: dir, Args: l.arguments()}
		w.Dir(dir)
		if err := errors.Join(w.Copy(t.Binary, b.binary),
			copyTree(w, path.Join(dir, "testdata"), filepath.Join(b.Dir, "testdata"))); err != nil {
			return fmt.Errorf("pack the tests of %s: %w", b.ImportPath, err)
		}
		plan.Tests = append(plan.Tests, t)
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	w.File(guest.PlanFile, text)
	w.File("/etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"))
	w.File("/etc/passwd", []byte("root:x:0:0:root:/tmp:/bin/sh\n"))
	w.File("/etc/group", []byte("root:x:0:\n"))
	return errors.Join(w.Copy("/init", l.init), w.Close())
}

// copyTree packs a directory, if it exists.
func copyTree(w *initramfs.Writer, to, from string) error {
	err := filepath.WalkDir(from, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		return w.Copy(path.Join(to, filepath.ToSlash(below)), name)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
