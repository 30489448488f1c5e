// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tlsServer is an https server that answers with its name.
func tlsServer(t *testing.T, name string) (addr string, trusting *tls.Config) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %s %d\n", name, r.Proto, r.RequestURI, n)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	config := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ServerName = "example.com"
	return s.Listener.Addr().String(), config
}

// pieces writes in pieces of that size, each in a segment of its own.
type pieces struct {
	net.Conn
	size int
}

func (p pieces) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k, err := p.Conn.Write(b[:min(p.size, len(b))])
		n += k
		if err != nil {
			return n, err
		}
		b = b[k:]
		time.Sleep(100 * time.Microsecond)
	}
	return n, nil
}

func httpsClient(t *testing.T, addr string, config *tls.Config, size int, h2 bool) *http.Client {
	config = config.Clone()
	if !h2 {
		config.NextProtos = []string{"http/1.1"}
	}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: h2,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			return pieces{c, size}, err
		}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func TestTLSIsRecognisedAndPassed(t *testing.T) {
	app, config := tlsServer(t, "app")
	for name, c := range map[string]struct {
		size  int
		h2    bool
		proto string
	}{
		"ClientHello at once":                  {1 << 20, false, "HTTP/1.1"},
		"ClientHello at once, HTTP/2":          {1 << 20, true, "HTTP/2.0"},
		"ClientHello in pieces":                {100, true, "HTTP/2.0"},
		"ClientHello in single bytes":          {1, false, "HTTP/1.1"},
		"ClientHello cut in the record header": {3, false, "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, app, says(t, "laptop"))
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			body := make([]byte, 100_000)
			rand.Read(body)
			if c.size < 100 {
				body = body[:200]
			}
			req, _ := http.NewRequest("POST", "https://example.com/x", bytes.NewReader(body))
			req.Header.Set("X-Dev", "me")
			client := httpsClient(t, w.addr, config, c.size, c.h2)
			for range 2 {
				req.Body = io.NopCloser(bytes.NewReader(body))
				resp, err := client.Do(req)
				require.NoError(t, err)
				got, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				assert.Equal(t, fmt.Sprintf("app %s /x %d\n", c.proto, len(body)), string(got))
			}
			client.CloseIdleConnections()
			stats := w.target.Stats()
			assert.EqualValues(t, 1, stats.TLS)
			assert.Zero(t, stats.HTTP)
			assert.Zero(t, w.laptop.opened())
			assert.Equal(t, "the port speaks TLS, so no request on it can match: use --mechanism tcp to take every connection", stats.Idle(false))
			assert.Empty(t, stats.Idle(true))
		})
	}
}

func TestATCPRuleHasTLSWhole(t *testing.T) {
	local, config := tlsServer(t, "laptop")
	app, _ := tlsServer(t, "app")
	for _, size := range []int{1 << 20, 7} {
		w := newWorld(t, app, local)
		w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
		client := httpsClient(t, w.addr, config, size, true)
		resp, err := client.Get("https://example.com/x")
		require.NoError(t, err)
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		client.CloseIdleConnections()
		assert.Equal(t, "laptop HTTP/2.0 /x 0\n", string(got))
		assert.Zero(t, w.appDials())
	}
}

func TestAPortIsSaidToSpeakTLSOnlyWhenItSpeaksNothingElse(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	assert.Empty(t, w.target.Stats().Idle(false), "nothing is known yet")
	say := func(what string) {
		c := w.connect()
		c.send("%s", what)
		c.CloseWrite()
		c.rest()
	}
	say("hello, this is no TLS")
	say("\x16\x04\x00\x00\x00\x01")
	say("\x16\x03\x01\x00\x05\x02")
	assert.Zero(t, w.target.Stats().TLS)
	say("\x16\x03\x01\x00\x05\x01\n\r\n\n")
	assert.EqualValues(t, 1, w.target.Stats().TLS)
	assert.NotEmpty(t, w.target.Stats().Idle(false))
	say("GET / HTTP/1.1\r\nHost: o\r\n\r\n")
	assert.EqualValues(t, 1, w.target.Stats().HTTP)
	assert.Empty(t, w.target.Stats().Idle(false))
}
