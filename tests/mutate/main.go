// SPDX-License-Identifier: Apache-2.0

// Command mutate breaks the code in many small ways, one at a time, and reports which of them no test
// notices.
//
//	go run ./tests/mutate -n 20 ./manager/... ./internal/match
//
// It draws the mutants of each package at random from the statements that the package's own tests run, and
// runs these tests for each mutant. Those that survive also meet the tests of the packages of -with. It
// changes no file: the compiler reads the mutant from an overlay.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	n := flag.Int("n", 10, "mutants of each package")
	seed := flag.Uint64("seed", 1, "which mutants are drawn")
	short := flag.Bool("short", false, "run the tests with -short")
	with := flag.String("with", "", "a package whose tests survivors meet, too, such as ./manager")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("mutate: name packages, such as ./manager/...")
	}
	r := runner{short: *short, with: *with}
	var err error
	if r.dir, err = os.MkdirTemp("", "mutate"); err != nil {
		log.Fatal(err)
	}
	err = r.all(flag.Args(), *n, *seed)
	_ = os.RemoveAll(r.dir)
	if err != nil {
		log.Fatal("mutate: ", err)
	}
}

// pkg is a package as `go list` describes it.
type pkg struct {
	Dir, ImportPath           string
	GoFiles                   []string
	TestGoFiles, XTestGoFiles []string
}

// runner runs the tests of packages, with and without mutants.
type runner struct {
	dir   string // of its temporary files
	short bool
	with  string
}

// all tries n mutants of each package, and prints a line for each survivor and the sums.
func (r *runner) all(patterns []string, n int, seed uint64) error {
	pkgs, err := list(patterns)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 0))
	var killed, tried int
	for _, p := range pkgs {
		k, t, err := r.one(p, n, random)
		if err != nil {
			return fmt.Errorf("%s: %w", p.ImportPath, err)
		}
		if t > 0 {
			fmt.Printf("%s: %d of %d mutants die\n", p.ImportPath, k, t)
		}
		killed, tried = killed+k, tried+t
	}
	fmt.Printf("all: %d of %d mutants die\n", killed, tried)
	return nil
}

// list returns the packages that have tests.
func list(patterns []string) ([]pkg, error) {
	out, err := exec.Command("go", append([]string{"list", "-json"}, patterns...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", explained(err))
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
			pkgs = append(pkgs, p)
		}
	}
	return pkgs, nil
}

func explained(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

// one tries n mutants of a package.
func (r *runner) one(p pkg, n int, random *rand.Rand) (killed, tried int, err error) {
	profile := filepath.Join(r.dir, "cover.out")
	began := time.Now()
	if out, err := r.test(p.ImportPath, 20*time.Minute, "-coverprofile", profile); err != nil {
		return 0, 0, fmt.Errorf("the tests fail without a mutant: %w\n%s", err, out)
	}
	limit := 3*time.Since(began) + time.Minute
	covered, err := readProfile(profile)
	if err != nil {
		return 0, 0, err
	}
	var mutants []mutant
	for _, file := range p.GoFiles {
		more, err := mutantsOf(filepath.Join(p.Dir, file), covered[p.ImportPath+"/"+file])
		if err != nil {
			return 0, 0, err
		}
		mutants = append(mutants, more...)
	}
	random.Shuffle(len(mutants), func(i, j int) { mutants[i], mutants[j] = mutants[j], mutants[i] })
	for _, m := range mutants {
		if tried == n {
			break
		}
		dies, err := r.dies(p, m, limit)
		if errors.Is(err, errNoProgram) {
			continue // such as one that leaves a variable unused
		}
		if err != nil {
			return killed, tried, err
		}
		if tried++; dies {
			killed++
			continue
		}
		fmt.Printf("survives: %s\n", m)
	}
	return killed, tried, nil
}

var errNoProgram = errors.New("the mutant does not compile")

// dies reports whether some test of the package fails with the mutant.
func (r *runner) dies(p pkg, m mutant, limit time.Duration) (bool, error) {
	file, overlay := filepath.Join(r.dir, "mutant.go"), filepath.Join(r.dir, "overlay.json")
	if err := os.WriteFile(file, m.source, 0o600); err != nil {
		return false, err
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{m.file: file}})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return false, err
	}
	args := []string{"-overlay", overlay, "-failfast", "-vet=off"}
	out, err := r.test(p.ImportPath, limit, args...)
	if err != nil && slices.ContainsFunc([]string{"[build failed]", "[setup failed]"}, func(s string) bool {
		return strings.Contains(out, s)
	}) {
		return false, errNoProgram
	}
	if err == nil && r.with != "" {
		_, err = r.test(r.with, 20*time.Minute, args...)
	}
	return err != nil, nil
}

func (r *runner) test(pkg string, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit+time.Minute)
	defer cancel()
	args = append([]string{"test", "-count=1", "-timeout", limit.String()}, args...)
	if r.short {
		args = append(args, "-short")
	}
	out, err := exec.CommandContext(ctx, "go", append(args, pkg)...).CombinedOutput()
	return string(out), err
}
