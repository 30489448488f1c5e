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

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// root is the directory of all pins in bpffs.
const root = "sidestep"

// pin is one pinned link.
type pin struct {
	path         string
	inode, epoch uint64
}

func newPin(dir string, inode, epoch uint64) pin {
	return pin{path: filepath.Join(dir, fmt.Sprintf("%d-%d", inode, epoch)), inode: inode, epoch: epoch}
}

func parsePin(path string) (pin, error) {
	inode, epoch, _ := strings.Cut(filepath.Base(path), "-")
	p := pin{path: path}
	var errs [2]error
	p.inode, errs[0] = strconv.ParseUint(inode, 10, 64)
	p.epoch, errs[1] = strconv.ParseUint(epoch, 10, 64)
	return p, errors.Join(errs[:]...)
}

// inDirectory calls fn with the pins in dir, while nobody else changes them. Without create, a missing dir means no pins and
// fn is not called. The directory goes with its last pin.
func inDirectory(dir string, create bool, fn func([]pin) error) error {
	lock, err := lockDirectory(dir, create)
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if lock == nil {
		return nil
	}
	// This is the start of the critical section. Do as little as possible in here.
	defer func() {
		_ = os.Remove(dir) // both fail when something is in there
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

// lockDirectory opens and locks dir; nil if it does not exist and is not to be created. Others may remove it at any time before
// it is locked.
func lockDirectory(dir string, create bool) (*os.File, error) {
	for {
		if create {
			if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrNotExist) {
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

// errNoLink says that something else than the link of a network namespace is pinned.
var errNoLink = errors.New("it is not the link of a network namespace")

// open loads the pinned link. gone means that its namespace no longer exists.
func (p pin) open() (l link.Link, gone bool, err error) {
	l, err = link.LoadPinnedLink(p.path, nil)
	// EACCES is the kernel's word for what is no BPF object at all, an error without a number the library's for a map or a program.
	if err != nil && (errors.Is(err, unix.EACCES) || !errors.As(err, new(unix.Errno))) {
		err = fmt.Errorf("%w: %w", errNoLink, err)
	}
	if err != nil {
		return nil, false, fmt.Errorf("open pin %s: %w", p.path, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("inspect pin %s: %w", p.path, err), l.Close())
	}
	ns := info.NetNs()
	if ns == nil {
		return nil, false, errors.Join(fmt.Errorf("open pin %s: %w", p.path, errNoLink), l.Close())
	}
	return l, ns.NetnsInode == 0, nil
}

func (p pin) exists() bool {
	_, err := os.Lstat(p.path)
	return err == nil
}

// unloadIf detaches the link and removes the pin if which says so.
func (p pin) unloadIf(which func(p pin, gone bool) bool) error {
	l, gone, err := p.open()
	if errors.Is(err, errNoLink) && which(p, true) {
		return os.Remove(p.path)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if !which(p, gone) {
		return nil
	}
	// Removing the pin detaches too, but a little later and only if nobody else has the link open.
	if err := l.Detach(); err != nil && !gone {
		return fmt.Errorf("detach from network namespace %d: %w", p.inode, err)
	}
	if err := os.Remove(p.path); err != nil {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

// Purge detaches and removes everything that any agent of any node, of whatever version, has pinned below bpffs.
func Purge(bpffs string) error {
	nodes, err := filepath.Glob(filepath.Join(bpffs, root, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range nodes {
		errs = append(errs, inDirectory(dir, false, func(pins []pin) error {
			var errs []error
			for _, p := range pins {
				errs = append(errs, p.unloadIf(func(pin, bool) bool { return true }))
			}
			return errors.Join(append(errs, os.RemoveAll(dir))...) // also what has names that this version does not give
		}))
	}
	return errors.Join(errs...)
}

func ensureBPFFS(path string, log *slog.Logger) error {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if err == nil && uint64(st.Type) == unix.BPF_FS_MAGIC {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("inspect %s: %w", path, err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make a mount point for bpffs: %w", err)
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs at %s (mount it on the node, or give the node agent CAP_SYS_ADMIN): %w", path, err)
	}
	log.Info("mounted bpffs", "path", path)
	return nil
}
