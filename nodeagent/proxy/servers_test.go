// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/http1/corpus"
)

// program finds a program that tests/deps.sh installs. Where that has not been run, the test is
// skipped, and fails in CI.
func program(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v: tests/deps.sh run installs it", err)
	}
	if err != nil {
		t.Skipf("%v: tests/deps.sh run installs it", err)
	}
	return path
}

// background runs a program until the test ends, and waits until it listens.
func background(t *testing.T, addr string, name string, args ...string) {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.WaitDelay = time.Second
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 30*time.Second, 5*time.Millisecond)
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func nginx(t *testing.T) string {
	addr, dir := freeAddr(t), t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(conf, []byte(fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen %[2]s; large_client_header_buffers 8 256k; lingering_time 2s;
		location / { return 200 "nginx $request_method $request_uri\n"; }
	}
}`, dir, addr)), 0o600))
	background(t, addr, program(t, "nginx"), "-p", dir, "-e", dir+"/error.log", "-c", conf)
	return addr
}

func node(t *testing.T) string {
	addr := freeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	background(t, addr, program(t, "node"), "-e", fmt.Sprintf(`require('http').createServer((q, s) => {
	let n = 0
	q.on('data', d => n += d.length)
	q.on('end', () => s.end('node ' + q.method + ' ' + q.url + ' ' + n + '\n'))
}).listen(%s, '%s')`, port, host))
	return addr
}

// realServers are servers of three families of parsers.
func realServers(t *testing.T, test func(t *testing.T, addr string)) {
	for name, start := range map[string]func(*testing.T) string{
		"net/http": func(t *testing.T) string { return says(t, "app") }, "nginx": nginx, "node": node,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

var changing = regexp.MustCompile(`(?m)^Date: .*$`)

// conversation sends everything at once and a half-close, and returns all that comes back. A server
// that closes with bytes unread resets the connection, which may cost the end of what it has said.
func conversation(t *testing.T, addr, data string) (got string, reset bool) {
	c := connect(t, addr)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	defer c.Close()
	io.WriteString(c, data)
	c.CloseWrite()
	b, err := io.ReadAll(c)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Errorf("%q: no end after %q", data[:min(len(data), 300)], b)
	}
	return changing.ReplaceAllString(string(b), "Date:"), err != nil
}

func assertSameConversation(t *testing.T, name, direct, through, data string) {
	want, wantReset := conversation(t, direct, data)
	got, gotReset := conversation(t, through, data)
	if (wantReset || gotReset) && (strings.HasPrefix(want, got) || strings.HasPrefix(got, want)) {
		return
	}
	assert.Equal(t, want, got, name)
}

func TestRealServersAnswerAsTheyDoDirectly(t *testing.T) {
	const next = "GET /next HTTP/1.1\r\nHost: o\r\n%sConnection: close\r\n\r\n"
	realServers(t, func(t *testing.T, addr string) {
		w := newWorld(t, addr, says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		for _, name := range slices.Sorted(maps.Keys(corpus.Clear)) {
			m := corpus.Clear[name]
			assertSameConversation(t, name, addr, w.addr, m+m+fmt.Sprintf(next, ""))
		}
		assert.Zero(t, w.laptop.opened())
		for _, name := range slices.Sorted(maps.Keys(corpus.Ambiguous)) {
			// A request that is hidden behind an ambiguous one is the app's alone, even if it looks
			// as if it were matched.
			assertSameConversation(t, name, addr, w.addr, corpus.Ambiguous[name]+fmt.Sprintf(next, mine))
		}
		assert.Zero(t, w.laptop.opened())
	})
}

func TestAMatchedRequestIsFoundBehindEveryClearOne(t *testing.T) {
	realServers(t, func(t *testing.T, addr string) {
		w := newWorld(t, addr, says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		matched := 0
		for name, m := range corpus.Clear {
			c := w.connect()
			c.send("%s", m+"GET /matched HTTP/1.1\r\nHost: o\r\n"+mine+"\r\n"+m)
			resp, err := http.ReadResponse(c.r, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			if err != nil || resp.Close || resp.StatusCode == 400 {
				t.Logf("this server closes after %s", name)
				continue
			}
			matched++
			_, body := c.response("GET")
			assert.Equal(t, "laptop GET /matched 0\n", body, name)
			_, body = c.response("GET")
			assert.NotContains(t, body, "laptop", name)
			c.Close()
		}
		assert.GreaterOrEqual(t, matched, len(corpus.Clear)-3)
		assert.EqualValues(t, matched, w.target.Stats().Intercepts["uid-1"].Matched)
	})
}

func TestHugeHeadsAreTheAppsBusiness(t *testing.T) {
	realServers(t, func(t *testing.T, addr string) {
		w := newWorld(t, addr, says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		for _, size := range []int{10 << 10, 30 << 10, 100 << 10, 1200 << 10} {
			data := "GET / HTTP/1.1\r\nHost: o\r\nConnection: close\r\nX: " +
				strings.Repeat("x", size) + "\r\n\r\n"
			assertSameConversation(t, fmt.Sprint(size), addr, w.addr, data)
		}
	})
	t.Run("431 of a server that has enough arrives", func(t *testing.T) {
		w := newWorld(t, node(t), says(t, "laptop"))
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		c := w.connect()
		c.send("GET / HTTP/1.1\r\nHost: o\r\nX: %s\r\n\r\n", strings.Repeat("x", 20<<10))
		resp, err := http.ReadResponse(c.r, nil)
		require.NoError(t, err)
		assert.Equal(t, 431, resp.StatusCode)
	})
}
