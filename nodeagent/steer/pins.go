// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// root is the directory of all pins in bpffs.
const root = "sidestep"

// pin is the pin of one hook of one namespace.
type pin struct {
	hook
	path         string
	inode, epoch uint64
	made         bool // ClsAct: an agent created the qdisc, which is removed with the filter
}

// newPin names a pin: <inode>-<epoch> for SkLookup, else <inode>-<epoch>-<kind>-<device>, followed
// by -made if an agent created the qdisc.
func newPin(dir string, inode, epoch uint64, at hook, made bool) pin {
	name := fmt.Sprintf("%d-%d", inode, epoch)
	if at.kind != SkLookup {
		name += fmt.Sprintf("-%s-%d", at.kind, at.device)
	}
	if made {
		name += "-made"
	}
	return pin{hook: at, path: filepath.Join(dir, name), inode: inode, epoch: epoch, made: made}
}

func parsePin(path string) (pin, error) {
	parts := strings.Split(filepath.Base(path), "-")
	at, made := hook{kind: SkLookup}, false
	var numbers [3]uint64
	var errs [3]error
	switch len(parts) {
	case 5:
		made = true
		fallthrough
	case 4:
		at.kind = Datapath(parts[2])
		numbers[2], errs[2] = strconv.ParseUint(parts[3], 10, 31)
		at.device = int(numbers[2])
		fallthrough
	case 2:
		numbers[0], errs[0] = strconv.ParseUint(parts[0], 10, 64)
		numbers[1], errs[1] = strconv.ParseUint(parts[1], 10, 64)
	}
	p := newPin(filepath.Dir(path), numbers[0], numbers[1], at, made)
	if known := len(parts) == 2 || at.kind == TCX || at.kind == ClsAct; !known || p.path != path {
		errs[2] = errors.Join(errs[2], fmt.Errorf("%s is not the name of a pin", path))
	}
	return p, errors.Join(errs[:]...)
}

// inDirectory calls fn with the pins in dir, under a lock. Without create, a missing dir means no
// pins, and fn is not called. The directory is removed with its last pin.
func inDirectory(dir string, create bool, fn func([]pin) error) error {
	lock, err := lockDirectory(dir, create)
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if lock == nil {
		return nil
	}
	// The critical section starts here. Keep it short.
	defer func() {
		_ = os.Remove(dir) // both fail while the directory has entries
		_ = os.Remove(filepath.Dir(dir))
		_ = lock.Close()
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var pins []pin
	for _, e := range entries {
		if p, err := parsePin(filepath.Join(dir, e.Name())); err == nil {
			pins = append(pins, p)
		}
	}
	return fn(pins)
}

// lockDirectory opens and locks dir. It returns nil if dir does not exist and create is false.
// Until it is locked, others may remove it at any time.
func lockDirectory(dir string, create bool) (*os.File, error) {
	for try := 0; ; try++ {
		if create {
			if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrNotExist) && try < removedTries {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		f, err := os.Open(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && create:
			continue
		case errors.Is(err, fs.ErrNotExist):
			return nil, nil
		case err != nil:
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		locked, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if named, err := os.Stat(dir); err == nil && os.SameFile(locked, named) {
			return f, nil
		}
		_ = f.Close()
	}
}

// removedTries bounds how often MkdirAll is repeated because others remove the directory meanwhile.
// If it is mounted here and was removed on the node, nothing can ever be created in it again.
const removedTries = 1000

// errForeign means that the pinned object is not what its name says.
var errForeign = errors.New("it is not what its name says")

// open opens the pinned object. visit enters its namespace.
func (p pin) open(visit func(fn func() error) (bool, error)) (h attachment, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open pin %s: %w", p.path, err)
		}
	}()
	if p.kind == ClsAct {
		program, err := ebpf.LoadPinnedProgram(p.path, nil)
		if err != nil {
			return nil, foreign(err)
		}
		held, err := newFilterAttachment(program, p, visit)
		if err != nil {
			return nil, errors.Join(err, program.Close())
		}
		return held, nil
	}
	l, err := link.LoadPinnedLink(p.path, nil)
	if err != nil {
		return nil, foreign(err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inspect: %w", err), l.Close())
	}
	if ok := p.kind == SkLookup && info.NetNs() != nil || p.kind == TCX && info.TCX() != nil; !ok {
		return nil, errors.Join(errForeign, l.Close())
	}
	return linkAttachment{l}, nil
}

// foreign wraps errors that mean errForeign in it. The kernel returns EACCES for an object that is
// not BPF's. The library returns an error without an errno for an object of another type.
func foreign(err error) error {
	if errors.Is(err, unix.EACCES) || !errors.As(err, new(unix.Errno)) {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	return err
}

func (p pin) exists() bool {
	_, err := os.Lstat(p.path)
	return err == nil
}

// unloadIf detaches the pinned object and removes the pin if which returns true.
func (p pin) unloadIf(visit func(fn func() error) (bool, error),
	which func(p pin, gone func() bool) bool) error {
	h, err := p.open(visit)
	if errors.Is(err, errForeign) && which(p, func() bool { return true }) {
		return os.Remove(p.path)
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if !which(p, h.gone) {
		return nil
	}
	// Removing the pin of a link also detaches it, but a little later, and only if no other process
	// has the link open.
	if err := h.detach(); err != nil {
		return fmt.Errorf("detach from network namespace %d: %w", p.inode, err)
	}
	if err := os.Remove(p.path); err != nil {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

func always(pin, func() bool) bool { return true }

// Purge detaches and removes everything that any agent of any node and version has pinned below
// bpffs.
func Purge(bpffs string, options ...Option) error {
	n := NewNode(bpffs, "", slog.New(slog.DiscardHandler), options...)
	nodes, err := filepath.Glob(filepath.Join(bpffs, root, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range nodes {
		errs = append(errs, inDirectory(dir, false, func(pins []pin) error {
			var errs []error
			for _, p := range pins {
				errs = append(errs, p.unloadIf(searcher(n.proc, p.inode), always))
			}
			// including names that this version does not use
			return errors.Join(append(errs, os.RemoveAll(dir))...)
		}))
	}
	return errors.Join(errs...)
}

func ensureBPFFS(path string, log *slog.Logger) error {
	if HasOwnMount(path) {
		return keepMount(filepath.Join(path, root))
	}
	is, err := isBPFFS(path)
	if is || err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make a mount point for bpffs: %w", err)
	}
	if err := unix.Mount("bpf", path, "bpf",
		unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs at %s (mount it on the node, or give the node agent CAP_SYS_ADMIN): %w", path, err)
	}
	log.Info("mounted bpffs", "path", path)
	return nil
}
