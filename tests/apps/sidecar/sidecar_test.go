// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBothSidecarsPassRequestsOfBothVersions(t *testing.T) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, body)
	}))
	app.Config.Protocols = protocols(true, true)
	app.Start()
	defer app.Close()
	for name, serve := range map[string]func(context.Context, net.Listener,
		string) error{"http": ServeHTTP, "tcp": ServeTCP} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- serve(ctx, listener, app.Listener.Addr().String()) }()
			for version, p := range map[string]*http.Protocols{"HTTP/1.1": protocols(true, false),
				"HTTP/2.0": protocols(false, true)} {
				transport := &http.Transport{Protocols: p}
				request, err := http.NewRequest(http.MethodPost, "http://"+listener.Addr().String(),
					strings.NewReader("hello"))
				require.NoError(t, err)
				request.Host = "orders"
				response, err := (&http.Client{Transport: transport}).Do(request)
				require.NoError(t, err)
				body, err := io.ReadAll(response.Body)
				require.NoError(t, err)
				assert.Equal(t, version+" orders hello", string(body))
				transport.CloseIdleConnections()
			}
			stop()
			assert.NoError(t, <-done)
		})
	}
}
