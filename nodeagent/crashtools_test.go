// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
)

// road is a network between two programs that can swallow everything, without a word to either.
type road struct {
	address string
	to      string

	mu      sync.Mutex
	blocked chan struct{} // closed: open to traffic
}

func newRoad(t *testing.T, to string) *road {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	r := &road{address: l.Addr().String(), to: to, blocked: make(chan struct{})}
	close(r.blocked)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(from)
		}
	}()
	return r
}

func (r *road) block() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = make(chan struct{})
}

func (r *road) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.blocked)
}

func (r *road) wait() {
	r.mu.Lock()
	blocked := r.blocked
	r.mu.Unlock()
	<-blocked
}

func (r *road) carry(from net.Conn) {
	defer from.Close()
	r.wait()
	to, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	var done atomic.Int32
	ended := make(chan struct{})
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buf)
				r.wait()
				if n > 0 && err == nil {
					_, err = way[1].Write(buf[:n])
				}
				if err != nil {
					break
				}
			}
			if done.Add(1) == 1 {
				close(ended)
			}
		}()
	}
	<-ended
}

// confineMemory gives a process at most so many bytes more than it has, whatever the version of
// cgroups.
func confineMemory(t *testing.T, pid int, limit int) {
	t.Helper()
	for _, way := range []struct{ parent, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
		{"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(way.parent, fmt.Sprintf("sidestep-test-%d", pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() {
			// if it still runs
			_ = os.WriteFile(filepath.Join(way.parent, "cgroup.procs"), fmt.Append(nil, pid), 0)
			if err := unix.Rmdir(dir); err != nil {
				t.Logf("remove %s: %v", dir, err)
			}
		})
		err := os.WriteFile(filepath.Join(dir, way.limit), fmt.Append(nil, limit), 0)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0)
		}
		if err == nil {
			return
		}
		require.True(t, errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission), "%v", err)
	}
	require.Fail(t, "this machine has no cgroup in which memory can be limited")
}

// closing says whether some connection in the pod waits for an acknowledgement of its end, or for
// its owner to end it. Should the pod's addresses go now, the kernel would keep the connection, and
// the namespace with it, for two minutes.
func closing(t *testing.T, p *testnet.Pod) bool {
	t.Helper()
	var table []byte
	require.NoError(t, p.Do(func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			rows, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			table = append(table, rows...)
		}
		return nil
	}))
	for line := range strings.Lines(string(table)) {
		// Of the states of include/net/tcp_states.h, FIN_WAIT1, CLOSE_WAIT, LAST_ACK and CLOSING.
		if f := strings.Fields(line); len(f) > 3 && slices.Contains([]string{"04", "08", "09", "0B"}, f[3]) {
			return true
		}
	}
	return false
}
