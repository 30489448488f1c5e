// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// pkg is a package with tests.
type pkg struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	TestGoFiles, XTestGoFiles          []string
}

const project = "sidestep.dev/sidestep/"

// discover returns the packages whose tests run on other kernels: those that match patterns, or all
// that use the kernel directly.
func discover(ctx context.Context, patterns string) (all []pkg, err error) {
	args := []string{"list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,TestGoFiles,XTestGoFiles"}
	if patterns == "" {
		args = append(args, "./...")
	} else {
		args = append(args, strings.Split(patterns, ",")...)
	}
	out, err := command(ctx, "go", args...)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	for {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the list of packages: %w", err)
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 && (patterns != "" || p.facesKernel()) {
			all = append(all, p)
		}
	}
}

// facesKernel reports whether another kernel could make a difference for the package: it, or its
// tests, use BPF, netlink or network namespaces, or it is below nodeagent and makes Linux system
// calls.
func (p pkg) facesKernel() bool {
	own := strings.HasPrefix(p.ImportPath, project+"nodeagent") &&
		slices.Contains(p.Imports, "golang.org/x/sys/unix")
	return own || slices.ContainsFunc(slices.Concat(p.Imports, p.TestImports, p.XTestImports),
		func(path string) bool {
			return slices.ContainsFunc([]string{"github.com/cilium/ebpf", "github.com/vishvananda/netlink",
				project + "internal/testnet"}, func(has string) bool {
				return path == has || strings.HasPrefix(path, has+"/")
			})
		})
}
