// SPDX-License-Identifier: Apache-2.0

// Package netns visits network namespaces, and namespaces of other kinds.
package netns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// ID names a network namespace for as long as it exists. Inodes are reused once it is gone.
type ID struct {
	Dev, Inode uint64
}

// IDOf is the ID of the namespace whose file, such as /proc/42/ns/net, was inspected.
func IDOf(info fs.FileInfo) (ID, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ID{}, fmt.Errorf("%s has no inode", info.Name())
	}
	return ID{Dev: uint64(st.Dev), Inode: st.Ino}, nil
}

// Namespace is an open network namespace. Holding it open, or any socket in it, keeps it alive
// after its pod is gone.
type Namespace struct {
	id         ID
	name       string // for errors
	file, home *os.File
}

// Open opens the namespace behind a path such as /proc/42/ns/net.
func Open(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("identify network namespace %s: %w", path, err), file.Close())
	}
	id, err := IDOf(info)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	// Only a goroutine in Do is ever elsewhere, and it keeps its thread to itself.
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the process's own network namespace: %w", err), file.Close())
	}
	return &Namespace{id: id, name: fmt.Sprintf("network namespace %d", id.Inode), file: file, home: home}, nil
}

// Inode is the number that the kernel shows for the namespace, net:[4026532345].
func (n *Namespace) Inode() uint64 { return n.id.Inode }

// ID returns what tells this namespace from the others.
func (n *Namespace) ID() ID { return n.id }

// Control calls fn with the file descriptor of the namespace, which stays open meanwhile.
func (n *Namespace) Control(fn func(fd int) error) error { return control(n.file, fn) }

func control(file *os.File, fn func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	return cmp.Or(raw.Control(func(fd uintptr) { result = fn(int(fd)) }), result)
}

// Close lets go of the namespace. Sockets that were opened in it stay open.
func (n *Namespace) Close() error { return errors.Join(n.file.Close(), n.home.Close()) }

// Do runs fn in the namespace, as Visit does.
func (n *Namespace) Do(fn func() error) error {
	return control(n.home, func(home int) error {
		return control(n.file, func(there int) error {
			return Visit(n.name, unix.CLONE_NEWNET, there, home, fn)
		})
	})
}

// Holds reports whether an interface of the namespace has one of the addresses.
func (n *Namespace) Holds(ips []netip.Addr) (bool, error) {
	var has []net.Addr
	err := n.Do(func() (err error) {
		has, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return false, fmt.Errorf("list the addresses in network namespace %d: %w", n.id.Inode, err)
	}
	return slices.ContainsFunc(has, func(a net.Addr) bool {
		prefix, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(prefix.IP)
		return ok && slices.Contains(ips, ip.Unmap())
	}), nil
}
