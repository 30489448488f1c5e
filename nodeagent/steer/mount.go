// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// keeper is a directory that keeps the mounted directory of pins from being empty, and so from being
// removed by an agent that has all of bpffs mounted: nothing can be made in a removed one.
const keeper = "mounted"

// ErrRemoved says that the directory that is mounted for pins was removed on the node. The container
// has to start anew: its runtime makes and mounts another one.
var ErrRemoved = errors.New("the directory of pins that is mounted here was removed on the node")

// HasOwnMount reports whether only the agents' own directory of the node's bpffs is mounted below
// the path, and not all of bpffs.
func HasOwnMount(bpffs string) bool {
	all, err := isBPFFS(bpffs)
	if all || err != nil {
		return false
	}
	own, err := isBPFFS(filepath.Join(bpffs, root))
	return own && err == nil
}

func isBPFFS(path string) (bool, error) {
	var st unix.Statfs_t
	switch err := unix.Statfs(path, &st); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("inspect %s: %w", path, err)
	}
	return uint64(st.Type) == unix.BPF_FS_MAGIC, nil
}

// keepMount makes the directory that keeps a mounted one.
func keepMount(dir string) error {
	err := os.Mkdir(filepath.Join(dir, keeper), 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", dir, ErrRemoved)
	case err != nil:
		return fmt.Errorf("keep the directory of pins: %w", err)
	}
	return nil
}

// Kept returns ErrRemoved if nothing can be pinned any more because the mounted directory is gone.
func (n *Node) Kept() error {
	if !HasOwnMount(n.bpffs) {
		return nil
	}
	return keepMount(filepath.Join(n.bpffs, root))
}
