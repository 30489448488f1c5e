// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Find opens the network namespace with that inode number, if a process below proc, which is like
// /proc, is in it, or if it is mounted where the first process sees it; else it gives nil.
func Find(proc string, inode uint64) (*Namespace, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		if e.Name()[0] < '1' || e.Name()[0] > '9' {
			continue
		}
		if ns := openIf(filepath.Join(proc, e.Name(), "ns/net"), inode); ns != nil {
			return ns, nil
		}
	}
	return findMounted(proc, inode)
}

// findMounted looks where container runtimes keep namespaces of pods whose processes come and go.
func findMounted(proc string, inode uint64) (*Namespace, error) {
	mounts, err := os.ReadFile(filepath.Join(proc, "1/mountinfo"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	root := fmt.Sprintf("net:[%d]", inode)
	for line := range strings.Lines(string(mounts)) {
		// 1042 25 0:4 net:[4026532345] /run/netns/cni-0815 rw shared:5 - nsfs nsfs rw
		if f := strings.Fields(line); len(f) > 4 && f[3] == root {
			if ns := openIf(filepath.Join(proc, "1/root", f[4]), inode); ns != nil {
				return ns, nil
			}
		}
	}
	return nil, nil
}

// openIf opens a namespace if it is the one. Processes end at any time, and not all may be looked
// at: then it is another one.
func openIf(path string, inode uint64) *Namespace {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if id, err := IDOf(info); err != nil || id.Inode != inode {
		return nil
	}
	ns, err := Open(path)
	if err != nil {
		return nil
	}
	if ns.Inode() != inode {
		_ = ns.Close()
		return nil
	}
	return ns
}
