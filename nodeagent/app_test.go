// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
)

// hang replaces the app by one that takes no connections any more, as one does whose queue is full.
func (w *world) hang(t *testing.T) *net.TCPListener {
	t.Helper()
	require.NoError(t, w.app.Close())
	l := testnet.Listen(t, w.pod.Namespace, ":8080")
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }))
	require.NoError(t, err)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		c, err := testnet.Dial(ctx, w.pod.Namespace, target(w.pod))
		cancel()
		if err != nil {
			return l
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

func TestContainersRestartUnderAnIntercept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	processes, err := os.ReadDir(w.node.Proc())
	require.NoError(t, err)
	require.Len(t, processes, 1)
	// The sandbox's namespace stays. What runs in it is another process.
	require.NoError(t, os.Rename(filepath.Join(w.node.Proc(), processes[0].Name()),
		filepath.Join(w.node.Proc(), "4242")))
	require.NoError(t, w.app.Close())
	w.app = serve(t, w.pod)
	// three looks at the pod
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		w.expect(t, "me", "laptop")
		w.expect(t, "", "app")
	}
}

func TestAgentShortOfMemoryLeavesConnectionsToTheApp(t *testing.T) {
	const limit = 40 << 20
	w := newWorld(t)
	w.env = []string{fmt.Sprintf("GOMEMLIMIT=%d", limit)}
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	if !testing.Short() {
		confineMemory(t, p.Process.Pid, limit)
	}
	const most = 8000
	var open []net.Conn
	for len(open) < most {
		for range 100 {
			c, err := testnet.Dial(t.Context(), w.node.Namespace, target(w.pod))
			require.NoError(t, err)
			t.Cleanup(func() { _ = c.Close() })
			require.NoError(t, request(c, streamPath, "me"))
			open = append(open, c)
		}
		// On a slow machine the app may also be given a request because the laptop answers late.
		if code, why := fetch(t, "http://"+p.http+"/readyz"); code == http.StatusServiceUnavailable &&
			strings.Contains(why, "memory") {
			break
		}
	}
	require.Less(t, len(open), most, "it takes more and more")
	t.Logf("%d connections filled it", len(open))
	for _, c := range open {
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, err := io.ReadFull(c, make([]byte, 12))
		require.NoError(t, err, "what is open goes on")
	}
	w.eventually(t, "me", "app") // within a second without a beat
	w.expect(t, "", "app")
	code, why := fetch(t, "http://"+p.http+"/healthz")
	assert.Equal(t, http.StatusOK, code, why)
	for _, c := range open {
		_ = c.Close()
	}
	require.Eventually(t, func() bool {
		got, err := w.get(w.pod.IP4, "me")
		return err == nil && got == "laptop"
	}, time.Minute, 200*time.Millisecond, "memory has come free")
}

func TestAppThatTakesNoConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	app := w.hang(t)
	idle := p.sockets(t)
	dial := func() net.Conn {
		c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, appPort))
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for name, says := range map[string]string{"a client that has said nothing": "",
		"a request": "GET / HTTP/1.1\r\nHost: orders\r\n\r\n", "what is not HTTP": "\x01\x02\x03"} {
		t.Run(name+" is not kept in mind when its client has gone", func(t *testing.T) {
			c := dial()
			_, err := c.Write([]byte(says))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return p.sockets(t) >= idle+2 }, 30*time.Second,
				10*time.Millisecond, "the app is being dialled")
			require.NoError(t, c.(*net.TCPConn).SetLinger(0))
			require.NoError(t, c.Close())
			assert.Eventually(t, func() bool { return p.sockets(t) <= idle }, 30*time.Second,
				50*time.Millisecond, "the app is still being dialled")
		})
	}
	t.Run("a client that waits is served when the app is back", func(t *testing.T) {
		c := dial()
		require.NoError(t, request(c, "/", ""))
		go func() {
			for {
				a, err := app.AcceptTCP()
				if err != nil {
					return
				}
				_, _ = a.Write([]byte("HTTP/1.0 200 OK\r\n\r\napp"))
				_ = a.Close()
			}
		}()
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		require.NoError(t, err)
		assert.Contains(t, string(buf[:n]), "200 OK")
	})
}
