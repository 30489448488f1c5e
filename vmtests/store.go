// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sidestep.dev/sidestep/vmtests/report"
)

// freshness is how old results may be that stand in the table beside newer ones.
const freshness = 24 * time.Hour

// stored is the results of a package's tests on a kernel, so that a partial run is completed by
// earlier results.
type stored struct {
	When  time.Time
	Tests []report.Test
}

// known is everything that is stored of one kernel.
type known struct {
	Release, Version string
	Packages         map[string]stored
}

func (l *lab) recall(name string) (known, error) {
	k := known{Packages: map[string]stored{}}
	text, err := os.ReadFile(l.storeOf(name))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		return k, fmt.Errorf("read earlier results: %w", err)
	}
	for p, s := range k.Packages {
		if time.Since(s.When) > freshness {
			delete(k.Packages, p)
		}
	}
	return k, nil
}

func (l *lab) storeOf(name string) string { return filepath.Join(l.cache.Dir, "results", name+".json") }

// remember stores the results of whole packages, and removes those of another version of the
// kernel.
func (l *lab) remember(k *report.Kernel) error {
	if l.pattern != "" || !k.Done {
		return nil
	}
	all, err := l.recall(k.Name)
	if err != nil || all.Version != k.Version {
		all = known{Packages: map[string]stored{}}
	}
	all.Release, all.Version = k.Release, k.Version
	byPackage := map[string][]report.Test{}
	for _, t := range k.Tests {
		byPackage[t.Package] = append(byPackage[t.Package], t)
	}
	for p, tests := range byPackage {
		all.Packages[p] = stored{time.Now(), tests}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.storeOf(k.Name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(l.storeOf(k.Name), text, 0o644)
}

// everywhere returns the results on all kernels of a complete run, from this run and from earlier
// ones.
func (l *lab) everywhere(ctx context.Context) (all []*report.Kernel, err error) {
	packages, err := discover(ctx, "")
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(everything, ",") {
		has, err := l.recall(name)
		if err != nil {
			return nil, err
		}
		k := &report.Kernel{Name: name, Release: has.Release, Version: has.Version, Done: true}
		for _, p := range packages {
			s, ok := has.Packages[p.ImportPath]
			k.Tests = append(k.Tests, s.Tests...)
			k.Partial = k.Partial || !ok
		}
		if len(k.Tests) > 0 {
			all = append(all, k)
		}
	}
	return all, nil
}
