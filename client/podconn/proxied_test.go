// SPDX-License-Identifier: Apache-2.0

package podconn_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"sidestep.dev/sidestep/client/podconn"
)

// upgradedEcho upgrades a request as a pod does, and says everything twice over.
func upgradedEcho(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v1/namespaces/sidestep/pods/manager-0:8080/proxy/connect" ||
		r.Header.Get("Authorization") != "Bearer me" {
		http.Error(w, "asked for "+r.URL.Path, http.StatusNotFound)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello ", r.Header.Get("Upgrade"))
	_, _ = io.Copy(conn, conn)
}

func upgradeTo(ctx context.Context, config *rest.Config) (*podconn.Conn, error) {
	return podconn.DialUpgrade(ctx, config, "sidestep", "manager-0", 8080, "/connect", "sidestep")
}

// overTLS serves HTTP/1.1 and HTTP/2, as API servers do, and says how to reach it.
func overTLS(t *testing.T, handler http.HandlerFunc) *rest.Config {
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return &rest.Config{Host: server.URL, BearerToken: "me",
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func TestAnUpgradedRequestCarriesBytesBothWays(t *testing.T) {
	conn, err := upgradeTo(t.Context(), overTLS(t, upgradedEcho))
	require.NoError(t, err)
	defer conn.Close()
	assert.Equal(t, "sidestep/manager-0:8080", conn.RemoteAddr().String())
	first := make([]byte, 6)
	_, err = io.ReadFull(conn, first)
	require.NoError(t, err)
	assert.Equal(t, "hello ", string(first), "what came with the answer")
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() { _, _ = conn.Write(sent) }()
	received := make([]byte, len(sent))
	_, err = io.ReadFull(conn, received)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(sent, received))
	require.NoError(t, conn.Close())
	_, err = conn.Read(first)
	assert.ErrorIs(t, err, net.ErrClosed)
}

func TestAnUpgradedRequestGoesThroughTheProxyOfTheKubeconfig(t *testing.T) {
	config := overTLS(t, upgradedEcho)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		out, err := net.Dial("tcp", r.Host)
		if err != nil || r.Method != http.MethodConnect {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		in, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { defer out.Close(); _, _ = io.Copy(out, in) }()
		defer in.Close()
		_, _ = io.Copy(in, out)
	}))
	defer proxy.Close()
	address, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	config.Proxy = http.ProxyURL(address)
	conn, err := upgradeTo(t.Context(), config)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 6))
	require.NoError(t, err)
	assert.EqualValues(t, 1, asked.Load())
}

func TestARefusedUpgradeSaysWhy(t *testing.T) {
	forbidden := `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"not for you","reason":"Forbidden","code":403}`
	tests := map[string]struct {
		answer http.HandlerFunc
		says   string
		api    bool
	}{
		"by the API server": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, forbidden)
		}, "not for you", true},
		"by an older manager": {http.NotFound, "404 Not Found", false},
		"by a proxy before a manager that does not listen": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "connection refused", http.StatusServiceUnavailable)
		}, "connection refused", true},
		"by a server that takes it for an ordinary request": {func(w http.ResponseWriter,
			_ *http.Request) {
			fmt.Fprint(w, "welcome")
		}, "200 OK: welcome", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := upgradeTo(t.Context(), overTLS(t, test.answer))
			require.ErrorIs(t, err, podconn.ErrNotUpgraded)
			assert.ErrorContains(t, err, test.says)
			var answer apierrors.APIStatus
			assert.Equal(t, test.api, errors.As(err, &answer))
		})
	}
}

func TestADeadlineEndsAnUpgradedRequest(t *testing.T) {
	conn, err := upgradeTo(t.Context(), overTLS(t, upgradedEcho))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = io.ReadAll(conn)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestAnUpgradeIsNotWaitedForWhenItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	config := overTLS(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := upgradeTo(ctx, config)
	assert.ErrorIs(t, err, context.Canceled)
}

// BenchmarkUpgrade is one connection through a reverse proxy as the API server has it.
func BenchmarkUpgrade(b *testing.B) {
	pod := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sidestep\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}))
	defer pod.Close()
	address, err := url.Parse(pod.URL)
	require.NoError(b, err)
	server := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(address))
	defer server.Close()
	conn, err := upgradeTo(b.Context(),
		&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	require.NoError(b, err)
	defer conn.Close()
	data := make([]byte, 64<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		_, err := conn.Write(data)
		require.NoError(b, err)
	}
}
