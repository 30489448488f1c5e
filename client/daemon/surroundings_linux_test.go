// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/internal/reason"
)

func TestAFullDiskHindersOnlyWhatIsKeptOnIt(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, os.MkdirAll(w.options.CacheDir, 0o700))
	require.NoError(t, unix.Mount("tmpfs", w.options.CacheDir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(w.options.CacheDir, unix.MNT_DETACH) })
	w.options.LogFile = filepath.Join(w.options.CacheDir, "logs", "daemon.log")
	fill := filepath.Join(w.options.CacheDir, "fill")
	require.ErrorIs(t, os.WriteFile(fill, bytes.Repeat([]byte("x"), 1<<20), 0o600), unix.ENOSPC)
	w.start()
	assert.Contains(t, w.connect().GetMessage(), "no space left on device")
	_, said, err := w.intercept(t.Context(),
		&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
	require.NoError(t, err)
	assert.Contains(t, said[len(said)-1], "warning: the session is not saved and ends with the daemon")
	got, err := w.says(w.object(), 5)
	require.NoError(t, err)
	assert.Equal(t, "hello", got)

	// With space again the next thing that is kept is kept.
	require.NoError(t, os.Remove(fill))
	_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
	require.NoError(t, err)
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
	assert.Empty(t, w.status().GetMessage())
	assert.FileExists(t, filepath.Join(w.options.CacheDir, "session.json"))
}

// front is a TLS server before the API server.
func (w *world) front(admit func(*http.Request) bool) *httptest.Server {
	target, err := url.Parse(w.api.URL)
	require.NoError(w, err)
	behind := httputil.NewSingleHostReverseProxy(target)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !admit(r) {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(rw, r)
	}))
	// handshakes that are meant to fail
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	front.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config,
		error) {
		return w.frontTLS.Load(), nil
	}}
	front.StartTLS()
	w.Cleanup(front.Close)
	return front
}

func TestATokenThatExpiresIsRefreshedByItsPlugin(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	var valid atomic.Value
	issue := func(token string) {
		valid.Store("Bearer " + token)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600))
	}
	issue("first")
	front := w.front(func(r *http.Request) bool { return r.Header.Get("Authorization") == valid.Load() })
	// The token says that it has expired already, so that the plugin is asked for each request, as
	// it is for one that is old.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plugin"), []byte(`#!/bin/sh
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s","expirationTimestamp":"2020-01-01T00:00:00Z"}}' "$(cat "$(dirname "$0")/token")"
`), 0o755))
	w.kubeconfig = filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(w.kubeconfig, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "%s", insecure-skip-tls-verify: true}}]
users: [{name: dev, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}}}]
contexts: [{name: test, context: {cluster: test, user: dev, namespace: shop}}]
`, front.URL)), 0o600))
	w.start()
	w.connect()
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})

	issue("second")
	front.CloseClientConnections() // what the first token has opened is gone too
	w.eventually(func() bool { return w.status().GetConnected() }, "it connects again")
	_, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{})
	require.NoError(t, err)
	_, err = w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
	require.NoError(t, err)
	assert.Empty(t, w.api.Intercepts())

	// A plugin that wants a login cannot have one, and that is what is said.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plugin"),
		[]byte("#!/bin/sh\necho log in first >&2\nexit 1\n"), 0o755))
	_, err = w.daemon.List(t.Context(), &daemonpb.ListRequest{})
	assert.Equal(t, reason.Unauthorized, reason.Of(err), "%v", err)
}

// forwardProxy is an HTTP proxy that knows one host: the API server.
func (w *world) forwardProxy() (address string, passed *atomic.Int32) {
	passed = new(atomic.Int32)
	target, err := url.Parse(w.api.URL)
	require.NoError(w, err)
	behind := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if name, _, _ := strings.Cut(r.Host, ":"); name != "cluster.invalid" {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		passed.Add(1)
		if r.Method != http.MethodConnect {
			behind.ServeHTTP(rw, r)
			return
		}
		server, err := net.Dial("tcp", target.Host)
		if err != nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		defer server.Close()
		client, _, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		_, _ = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
		_, _ = io.Copy(client, server)
	}))
	w.Cleanup(proxy.Close)
	return proxy.URL, passed
}

func TestAProxyBeforeTheAPIServer(t *testing.T) {
	works := func(w *world, proxyURL string, passed *atomic.Int32) {
		line := ""
		if proxyURL != "" {
			line = fmt.Sprintf(", proxy-url: %q", proxyURL)
		}
		w.kubeconfig = filepath.Join(w.TempDir(), "kubeconfig")
		require.NoError(w, os.WriteFile(w.kubeconfig, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "http://cluster.invalid"%s}}]
users: [{name: dev, user: {token: secret}}]
contexts: [{name: test, context: {cluster: test, user: dev, namespace: shop}}]
`, line)), 0o600))
		w.spawn()
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		got, err := w.says(w.object(), 5)
		require.NoError(w, err)
		assert.Equal(w, "hello", got)
		assert.NotZero(w, passed.Load())
	}
	t.Run("of the environment", func(t *testing.T) {
		w := newWorld(t)
		proxy, passed := w.forwardProxy()
		t.Setenv("HTTP_PROXY", proxy)
		t.Setenv("NO_PROXY", "")
		works(w, "", passed)
	})
	t.Run("of the kubeconfig", func(t *testing.T) {
		w := newWorld(t)
		proxy, passed := w.forwardProxy()
		works(w, proxy, passed)
	})
}
