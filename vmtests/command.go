// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"sidestep.dev/sidestep/vmtests/debian"
	"sidestep.dev/sidestep/vmtests/machine"
	"sidestep.dev/sidestep/vmtests/report"
)

// native is the kernel of this computer.
const native = "native"

// everything is the kernels of a complete run: the oldest supported one, those of Debian 12, and
// what the next Debian will have.
const everything = "5.10,6.1,6.12," + debian.Newest + "," + native

type options struct {
	kernels, pattern, packages, docs, cache, accelerator string
	memory, cpus, machines                               int
	limit                                                time.Duration
	verbose                                              bool
}

func parse(args []string, out io.Writer) (o options, err error) {
	home, err := os.UserCacheDir()
	if err != nil {
		home = os.TempDir()
	}
	f := flag.NewFlagSet("vmtests", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.kernels, "kernels", everything,
		"`versions` of Debian's kernels, comma-separated; newest, native")
	f.StringVar(&o.pattern, "run", "", "run only tests that match this `pattern`, as in go test")
	f.StringVar(&o.packages, "packages", "",
		"test these packages, in the `patterns` of go list, comma-separated; default is all that face the kernel")
	f.StringVar(&o.docs, "docs", "",
		"write the table of this run and those of the last day into this Markdown `file`, if nothing has failed")
	f.StringVar(&o.cache, "cache", filepath.Join(home, "sidestep-vmtests"), "`directory` for kernels")
	f.StringVar(&o.accelerator, "accel", os.Getenv("VMTESTS_ACCEL"),
		"kvm or tcg; default is KVM where it proves to work ($VMTESTS_ACCEL)")
	f.IntVar(&o.memory, "memory", 2048, "`MiB` of a machine")
	f.IntVar(&o.cpus, "cpus", 2, "processors of a machine")
	f.IntVar(&o.machines, "machines", 2,
		"how many run at the same time; without KVM, each keeps one processor busy")
	f.DurationVar(&o.limit, "timeout", 30*time.Minute, "how long the tests may take on one kernel")
	f.BoolVar(&o.verbose, "v", false, "print all that the tests write")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.verbose {
		o.machines = 1 // or nobody could read it
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.machines < 1:
		return o, fmt.Errorf("%d machines: let at least one run", o.machines)
	case !slices.Contains([]string{"", machine.KVM, machine.TCG}, o.accelerator):
		return o, fmt.Errorf("accelerator %q: use kvm or tcg", o.accelerator)
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	begin := time.Now()
	work, err := os.MkdirTemp("", "vmtests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	out = &together{out: out}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	lab := &lab{options: o, out: out, work: work, log: log, cache: &debian.Cache{Dir: o.cache, Log: log}}
	if err := lab.build(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "built the tests of %d packages in %s\n", len(lab.tests),
		time.Since(begin).Round(time.Second))
	kernels, err := lab.all(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nall in %s\n", time.Since(begin).Round(time.Second))
	return lab.conclude(ctx, kernels)
}

// all runs everything on all kernels: in machines first, as many at a time as there may be, then
// natively with nothing beside it.
func (l *lab) all(ctx context.Context) ([]*report.Kernel, error) {
	names := strings.Split(l.kernels, ",")
	kernels, errs := make([]*report.Kernel, len(names)), make([]error, len(names))
	one := func(i int) {
		name := strings.TrimSpace(names[i])
		if kernels[i], errs[i] = l.kernel(ctx, name); errs[i] != nil {
			errs[i] = fmt.Errorf("kernel %s: %w", name, errs[i])
		}
	}
	var running sync.WaitGroup
	free := make(chan struct{}, l.machines)
	for i, name := range names {
		if strings.TrimSpace(name) != native {
			free <- struct{}{}
			running.Go(func() {
				one(i)
				<-free
			})
		}
	}
	running.Wait()
	for i, name := range names {
		if strings.TrimSpace(name) == native {
			one(i)
		}
	}
	return kernels, errors.Join(errs...)
}

// together lets several write, one at a time.
type together struct {
	mu  sync.Mutex
	out io.Writer
}

func (t *together) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.Write(p)
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// conclude prints the table.
func (l *lab) conclude(ctx context.Context, kernels []*report.Kernel) error {
	failures := 0
	for _, k := range kernels {
		failures += len(k.Failures())
		fmt.Fprintln(l.out, k.Summary())
	}
	if l.pattern == "" {
		all, err := l.everywhere(ctx)
		if err != nil {
			return err
		}
		for _, missing := range report.Missing(slices.Concat(product, features), all) {
			failures++
			fmt.Fprintln(l.out, "FAIL:", missing)
		}
		table := report.Markdown(product, features, all)
		fmt.Fprintf(l.out, "\n%s", table)
		if l.docs != "" && failures == 0 {
			if err := writeDocs(l.docs, table); err != nil {
				return err
			}
		}
	}
	if failures > 0 {
		return fmt.Errorf("%d failures", failures)
	}
	return nil
}

// indent is a test's output, its end if it is long.
func indent(text string) string {
	const most = 60
	lines := slices.Collect(strings.Lines(text))
	if len(lines) > most {
		lines = append([]string{fmt.Sprintf("(%d lines before)\n", len(lines)-most)},
			lines[len(lines)-most:]...)
	}
	for i, line := range lines {
		lines[i] = "    " + strings.TrimPrefix(strings.TrimRight(line, "\n"), "\x16") + "\n"
	}
	return strings.Join(lines, "")
}

// The table in the docs is between these lines.
const tableBegin, tableEnd = "<!-- table: written by make vmtest -->\n", "<!-- end of table -->\n"

func writeDocs(path, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	_, after, found := strings.Cut(rest, tableEnd)
	if !ok || !found {
		return fmt.Errorf("write the table: %s has not the lines %q and %q", path, tableBegin, tableEnd)
	}
	return os.WriteFile(path, []byte(before+tableBegin+table+tableEnd+after), 0o644)
}
