// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// need skips without the program where there is nothing but tests (a virtual machine has no shell),
// and elsewhere than in CI.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if _, noShell := exec.LookPath("sh"); noShell != nil {
		t.Skip(noShell)
	} else if os.Getenv("CI") != "" {
		t.Fatalf("%v (run tests/deps.sh run)", err)
	}
	// which is what a path that does not exist is not said to be
	t.Skipf("%s: %v: %v", program, exec.ErrNotFound, err)
	return ""
}

// start runs a program in the namespace.
func start(t *testing.T, ns *netns.Namespace, name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	out := &bytes.Buffer{}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, ns.Do(cmd.Start))
	return cmd, out
}

// pooled is one client of Go's net/http with a connection that it keeps.
type pooled struct {
	http.Client
	url   string
	ended atomic.Int64 // connections that were ended by the other side
}

// watchedConn is a connection of which is noted when the other side ends it. That the client opens
// another one says nothing: net/http gives up a connection by itself when it is kept from running
// for a while.
type watchedConn struct {
	net.Conn
	ended *atomic.Int64
}

func (c watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) {
		c.ended.Add(1)
	}
	return n, err
}

func newPooled(ns *netns.Namespace, to netip.Addr) *pooled {
	p := &pooled{url: fmt.Sprintf("http://%s/", netip.AddrPortFrom(to, port))}
	p.Transport = &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		c, err := testnet.Dial(ctx, ns, netip.MustParseAddrPort(address))
		if err != nil {
			return nil, err
		}
		return watchedConn{c, &p.ended}, nil
	}}
	return p
}

func (p *pooled) ask(ctx context.Context, marked bool) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return "", err
	}
	if marked {
		req.Header.Set("X-User", "ann")
	}
	res, err := p.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	_, err = new(bytes.Buffer).ReadFrom(res.Body)
	return res.Header.Get("Served-By"), err
}

func TestOf32BusyConnectionsThoseWithTheHeaderAreTakenOverAndNoOther(t *testing.T) {
	w := newWorld(t)
	var all []*pooled
	for i := range 32 {
		all = append(all, newPooled(w.node.Namespace, []netip.Addr{w.pod.IP4, w.pod.IP6}[i%2]))
	}
	var on, done atomic.Bool
	var after [32]atomic.Int64
	var running sync.WaitGroup
	for i, p := range all {
		developers := i < 4
		running.Go(func() {
			for !done.Load() {
				marked := developers && on.Load()
				who, err := p.ask(context.WithoutCancel(t.Context()), marked)
				if !assert.NoError(t, err, "client %d", i) {
					return
				}
				want := "app"
				if marked {
					want = "laptop"
				}
				assert.Equal(t, want, who, "client %d", i)
				if on.Load() {
					after[i].Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	enough := func() bool {
		for i := range after {
			if after[i].Load() < 20 {
				return false
			}
		}
		return true
	}
	require.Eventually(t, func() bool {
		w.app.mu.Lock()
		defer w.app.mu.Unlock()
		return len(
			w.app.seen) == 32
	}, 30*time.Second, 10*time.Millisecond)
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	on.Store(true)
	assert.Eventually(t, enough, 30*time.Second, 10*time.Millisecond)
	done.Store(true)
	running.Wait()
	for i, p := range all {
		if i >= 4 {
			assert.Zero(t, p.ended.Load(), "nobody has ended the connection of client %d", i)
		}
	}
	w.tookOver(t, 4)
	assert.Zero(t, w.app.marked.Load(), "the app has seen none of the developer's requests")
	t.Log("held back and let go:", w.counters.Released.Load())
}

// begin lets an intercept begin while a client waits for an answer on a connection that it will use
// again.
func (w *world) begin(t *testing.T) {
	t.Helper()
	select {
	case <-w.app.begun:
	case <-time.After(20 * time.Second):
		t.Fatal("the client has not asked")
	}
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	w.app.let <- struct{}{}
}

func TestClientsRepeatTheRequestByThemselves(t *testing.T) {
	const python = `
import sys
host, kind = sys.argv[1], sys.argv[2]
marked = {"X-User": "ann"}
if kind == "urllib3":
    import urllib3
    pool = urllib3.PoolManager()
    get = lambda path, headers: pool.request("GET", host + path, headers=headers)
else:
    import requests
    session = requests.Session()
    if kind == "requests-with-retries":
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=1))
    get = lambda path, headers: session.get(host + path, headers=headers)
print(get("/wait", {}).headers["Served-By"])
for i in range(2):
    try:
        print(get("/", marked).headers["Served-By"])
    except Exception as e:
        print("error", type(e).__name__)
`
	for _, c := range []struct{ name, want string }{
		{"curl", "app\nlaptop\n"},
		{"urllib3", "app\nlaptop\nlaptop\n"},
		{"requests-with-retries", "app\nlaptop\nlaptop\n"},
		{"requests", "app\nerror ConnectionError\nlaptop\n"}, // as it is by default
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			host := fmt.Sprintf("http://%s", netip.AddrPortFrom(w.pod.IP4, port))
			var cmd *exec.Cmd
			var out *bytes.Buffer
			if c.name == "curl" {
				print := []string{"-s", "-S", "-o", "/dev/null", "-w", "%header{served-by}\n"}
				args := append(append(append([]string{}, print...), host+"/wait", "--next"), print...)
				cmd, out = start(t, w.node.Namespace, need(t, "curl"),
					append(args, "-H", "X-User: ann", host+"/")...)
			} else {
				cmd, out = start(t, w.node.Namespace, need(t, "/usr/bin/python3"), "-c", python, host, c.name)
			}
			w.begin(t)
			assert.NoError(t, cmd.Wait(), out)
			assert.Equal(t, c.want, out.String())
			assert.Zero(t, w.app.marked.Load())
		})
	}
}

func TestNginxInFrontRepeatsTheRequest(t *testing.T) {
	nginx := need(t, "nginx")
	w := newWorld(t)
	w.startNginx(t, nginx)
	ask := newPooled(w.node.Namespace, w.pod.IP4)
	ask.url = "http://127.0.0.1:8000/"
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	require.Positive(t, w.port.Watched())
	for range 5 {
		who, err := ask.ask(t.Context(), true)
		require.NoError(t, err)
		assert.Equal(t, "laptop", who)
	}
	assert.Zero(t, w.app.marked.Load())
	w.tookOver(t, 1)
}
