// SPDX-License-Identifier: Apache-2.0

package shop

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// start serves the service on loopback and returns its base URL.
func start(t *testing.T, service *Service) string {
	t.Helper()
	server := httptest.NewServer(service.Handler())
	t.Cleanup(server.Close)
	return server.URL
}

func ask(t *testing.T, url string, header http.Header) (*http.Response, Answer) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	var answer Answer
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
	return response, answer
}

func TestAChainForwardsThePathAndTheHeadersThatPropagate(t *testing.T) {
	stock := start(t, &Service{Name: "stock", Pod: "stock-0"})
	orders := start(t, &Service{Name: "orders", Pod: "orders-a", Upstream: stock,
		Forward: []string{"x-user"}, KeepAlive: true})
	frontend := start(t, &Service{Name: "frontend", Pod: "frontend-a", Upstream: orders,
		Forward: []string{"x-user"}})

	response, answer := ask(t, frontend+"/api/v1?page=2", http.Header{
		InterceptHeader: {"session:orders"},
		"X-User":        {"ada", "grace"},
		"X-Other":       {"stays"},
	})
	assert.Equal(t, http.StatusOK, response.StatusCode)
	assert.Equal(t, "frontend", response.Header.Get(ServiceHeader))
	assert.Equal(t, "frontend-a", response.Header.Get(PodHeader))
	assert.Equal(t, []string{"frontend", "orders", "stock"}, answer.Chain())
	last := answer.Upstream.Upstream
	assert.Equal(t, "stock-0", last.Pod)
	assert.Equal(t, "/api/v1?page=2", last.Path)
	assert.Equal(t, []string{"session:orders"}, last.Headers[InterceptHeader])
	assert.Equal(t, []string{"ada", "grace"}, last.Headers["X-User"])
	assert.NotContains(t, last.Headers, "X-Other")
	assert.NotEmpty(t, last.RemoteAddr)
}

func TestAnUpstreamThatFailsIsSaid(t *testing.T) {
	broken := httptest.NewServer(http.NotFoundHandler())
	gone := broken.URL
	for _, test := range []struct {
		name    string
		prepare func()
		says    string
	}{
		{"by an answer that is not one", func() {}, "404"},
		{"by no answer", broken.Close, "refused"},
	} {
		test.prepare()
		t.Run(test.name, func(t *testing.T) {
			response, answer := ask(t, start(t, &Service{Name: "orders", Upstream: gone}), nil)
			assert.Equal(t, http.StatusBadGateway, response.StatusCode)
			assert.Contains(t, answer.Error, test.says)
		})
	}
}

func TestBytesAreAsManyAsAskedForAndTheSameEachTime(t *testing.T) {
	base := start(t, &Service{Name: "stock"})
	for _, count := range []int64{0, 1, 63, 64, 65, 100_000} {
		response, err := http.Get(fmt.Sprintf("%s/bytes/%d", base, count))
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		response.Body.Close()
		assert.Len(t, body, int(count))
		assert.Equal(t, strings.Repeat(letters, int(count)/len(letters)+1)[:count], string(body))
	}
	response, err := http.Get(base + "/bytes/many")
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, http.StatusBadRequest, response.StatusCode)
}

func TestASlowAnswerTakesItsTime(t *testing.T) {
	begin := time.Now()
	_, answer := ask(t, start(t, &Service{Name: "stock"})+"/slow?ms=50", nil)
	assert.Equal(t, "stock", answer.Service)
	assert.GreaterOrEqual(t, time.Since(begin), 50*time.Millisecond)
}

func TestEchoAnswersWhileTheBodyIsStillComing(t *testing.T) {
	base := start(t, &Service{Name: "stock"})
	body, write := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/echo", body)
	require.NoError(t, err)
	go fmt.Fprintln(write, "one")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "one\n", line)
	go func() {
		fmt.Fprintln(write, "two")
		write.Close()
	}()
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	assert.Equal(t, "two\n", string(rest))
}

func TestAServiceThatIsToldToStopFinishesWhatItHas(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	entered := make(chan struct{})
	service := &Service{Name: "stock"}
	go func() {
		done <- Serve(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			service.Handler().ServeHTTP(w, r)
		}), 0)
	}()
	go func() {
		<-entered
		stop()
	}()
	_, answer := ask(t, "http://"+listener.Addr().String()+"/slow?ms=100", nil)
	assert.Equal(t, "stock", answer.Service)
	assert.NoError(t, <-done)
}

func TestTheServerSpeaksHTTP2WithoutTLS(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, listener, (&Service{Name: "stock"}).Handler(), 0) }()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	response, err := (&http.Client{Transport: transport}).Get("http://" + listener.Addr().String())
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 2, response.ProtoMajor)
	stop()
	assert.NoError(t, <-done)
}
