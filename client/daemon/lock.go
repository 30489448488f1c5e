// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sidestep.dev/sidestep/client/daemon/socket"
	"sidestep.dev/sidestep/client/home"
)

// startTimeout bounds how long a daemon waits for another one that has the lock to serve, or to
// end.
const startTimeout = 10 * time.Second

// errServed means that another daemon serves the socket.
var errServed = errors.New("another daemon serves the socket")

// endpoint is the socket that is served, and the lock that keeps other daemons from serving it.
type endpoint struct {
	net.Listener
	path string
	lock *os.File
	file os.FileInfo // of the socket
}

// listen takes the lock and creates the socket. It returns errServed if another daemon is there
// already.
func listen(ctx context.Context, path string) (*endpoint, error) {
	if len(path) > 100 { // of 108 bytes on Linux and 104 elsewhere
		return nil, fmt.Errorf("the path %s is too long for a socket: set SIDESTEP_DAEMON_SOCKET to a shorter one", path)
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%w: set SIDESTEP_DAEMON_SOCKET to a path that can be written", err)
	}
	lock, err := takeLock(ctx, path)
	if err != nil {
		return nil, err
	}
	e := &endpoint{path: path, lock: lock}
	if err := e.bind(); err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

// makeDir creates the socket's directory for the user alone. It leaves an existing directory that
// is not sidestep's own as it is.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if filepath.Base(dir) == "sidestep" && info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func takeLock(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if serves(path) {
			return nil, errServed
		}
		lock, err := tryLock(home.Lock(path))
		if lock != nil || err != nil {
			return lock, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			holder, _ := os.ReadFile(home.Lock(path))
			return nil, fmt.Errorf("another daemon (process %s) holds %s and does not serve",
				strings.TrimSpace(string(holder)), home.Lock(path))
		}
	}
}

// tryLock returns nil and no error if another process has the lock.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the daemon's socket: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The process that had it may have removed the file meanwhile. Then the lock is on an unlinked
	// file.
	mine, err := f.Stat()
	current, statErr := os.Stat(path)
	if err != nil || statErr != nil || !os.SameFile(mine, current) {
		_ = f.Close()
		return nil, nil
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

// serves reports whether a process accepts connections on the socket.
func serves(path string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// bind creates the socket in place of one that a dead daemon has left. The socket gets its name
// after its permissions.
func (e *endpoint) bind() error {
	if info, err := os.Lstat(e.path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is in the way: it is not a socket", e.path)
	}
	unnamed := e.path + ".new"
	if err := os.Remove(unnamed); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve the daemon's socket: %w", err)
	}
	listener, err := net.Listen("unix", unnamed)
	if err != nil {
		return fmt.Errorf("serve the daemon's socket: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // the name may be another daemon's by then
	err = os.Chmod(unnamed, 0o600)
	if err == nil {
		e.file, err = os.Lstat(unnamed)
	}
	if err == nil {
		err = os.Rename(unnamed, e.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("serve the daemon's socket: %w", err), listener.Close(),
			os.Remove(unnamed))
	}
	e.Listener = listener
	return nil
}

// Accept accepts only connections of this user, whatever the directory's permissions.
func (e *endpoint) Accept() (net.Conn, error) {
	for {
		conn, err := e.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, ok := socket.Peer(conn); !ok || uid == os.Getuid() || uid == 0 {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// removed reports whether the socket has been removed or replaced.
func (e *endpoint) removed() bool {
	info, err := os.Lstat(e.path)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	return !os.SameFile(info, e.file)
}

// release closes the socket and releases the lock.
func (e *endpoint) release() {
	if e.Listener != nil {
		_ = e.Listener.Close()
		if !e.removed() {
			_ = os.Remove(e.path)
		}
	}
	mine, err := e.lock.Stat()
	if current, statErr := os.Stat(e.lock.Name()); err == nil && statErr == nil && os.SameFile(mine, current) {
		_ = os.Remove(e.lock.Name())
	}
	_ = e.lock.Close()
}
