// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// noise is that many random bytes.
func noise(seed uint64, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), size)
}

func hashOf(t *testing.T, r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	assert.NoError(t, err)
	return fmt.Sprintf("%d bytes, %x", n, h.Sum(nil))
}

// bursts reads in pieces of sizes that are random, too, and sometimes stops a little.
type bursts struct {
	io.Reader
	sizes *rand.Rand
}

func (b bursts) Read(p []byte) (int, error) {
	if b.sizes.IntN(100) == 0 {
		time.Sleep(time.Millisecond)
	}
	return b.Reader.Read(p[:min(len(p), 1+b.sizes.IntN(1<<b.sizes.IntN(18)))])
}

// TestMuchRandomTrafficHasTheSameHashAtBothEnds sends random bytes in both directions at once over
// every kind of connection that there is.
func TestMuchRandomTrafficHasTheSameHashAtBothEnds(t *testing.T) {
	const size = 24 << 20
	for name, test := range map[string]struct {
		rules []Rule
		start string // of the connection
	}{
		"unread": {[]Rule{headerRule(t)}, "\x00"},
		"an upgrade by the app": {[]Rule{headerRule(t)},
			"GET / HTTP/1.1\r\nHost: o\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
		"an upgrade by the laptop": {[]Rule{headerRule(t)}, "GET / HTTP/1.1\r\nHost: o\r\n" +
			mine + "Connection: upgrade\r\nUpgrade: x\r\n\r\n"},
		"CONNECT":                       {[]Rule{headerRule(t)}, "CONNECT o:1 HTTP/1.1\r\nHost: o\r\n\r\n"},
		"a tcp rule":                    {[]Rule{tcpRule()}, "\x00"},
		"a tcp rule of a laptop away":   {[]Rule{{InterceptUID: "x", TCP: true}}, "\x00"},
		"a connection without an end":   {[]Rule{headerRule(t)}, "GET / HTTP/1.0\r\n\r\n"},
		"a connection without a rule":   {nil, "\x00"},
		"an answer that cannot be read": {[]Rule{headerRule(t)}, "GET /lf HTTP/1.1\r\nHost: o\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			up := make(chan string, 1)
			server := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
				if test.start == "\x00" {
					r.Discard(1)
				} else if req, err := http.ReadRequest(r); err != nil {
					return // the app, while the laptop has the connection
				} else if req.Method == "CONNECT" {
					io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
				} else if req.Header.Get("Upgrade") != "" {
					io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
				} else {
					io.WriteString(c, "HTTP/1.1 200 OK\n\n\r\n")
				}
				var down sync.WaitGroup
				down.Go(func() {
					io.Copy(c, bursts{noise(1, size), rand.New(rand.NewPCG(1, 2))})
					c.CloseWrite()
				})
				up <- hashOf(t, r)
				down.Wait()
			})
			w := newWorld(t, server, server)
			w.target.SetRules(test.rules, Kubelet{})
			c := w.connect()
			c.SetDeadline(time.Now().Add(time.Minute))
			go func() {
				io.WriteString(c, test.start)
				io.Copy(c, bursts{noise(2, size), rand.New(rand.NewPCG(3, 4))})
				c.CloseWrite()
			}()
			if test.start != "\x00" {
				for line := "."; line != "\r\n"; {
					var err error
					line, err = c.r.ReadString('\n')
					require.NoError(t, err)
				}
			}
			assert.Equal(t, hashOf(t, noise(1, size)), hashOf(t, c.r), "from the server")
			assert.Equal(t, hashOf(t, noise(2, size)), <-up, "from the client")
		})
	}
}

func TestAServerThatSpeaksFirstIsHeardAtOnce(t *testing.T) {
	banner := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		io.WriteString(c, "220 ready\r\n")
		r.ReadByte()
	})
	// The fastest of several tries: the machine may be busy with something else, but a delay would
	// be in each.
	fastest := func(addr string) time.Duration {
		best := time.Hour
		for range 20 {
			start := time.Now()
			c := connect(t, addr)
			line, err := c.r.ReadString('\n')
			best = min(best, time.Since(start))
			require.NoError(t, err)
			assert.Equal(t, "220 ready\r\n", line)
			c.Close()
		}
		return best
	}
	w := newWorld(t, banner, banner)
	direct := fastest(banner)
	for name, rules := range map[string][]Rule{"no rules": nil, "rules for requests": {headerRule(t)},
		"a tcp rule": {tcpRule()}} {
		t.Run(name, func(t *testing.T) {
			w.target.SetRules(rules, Kubelet{})
			through := fastest(w.addr)
			t.Logf("%v, directly %v", through, direct)
			assert.Less(t, through-direct, 5*time.Millisecond)
		})
	}
}

// TestEndsOfConnectionsArriveAsTheyAre tries each way to end a connection, from both sides, over
// each way through the proxy.
func TestEndsOfConnectionsArriveAsTheyAre(t *testing.T) {
	for name, rules := range map[string][]Rule{
		"no rules": nil, "rules for requests": {headerRule(t)}, "a tcp rule": {tcpRule()},
		"a tcp rule of a laptop away": {{InterceptUID: "x", TCP: true}},
	} {
		t.Run(name, func(t *testing.T) {
			ends := make(chan error, 1)
			server := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
				switch b, _ := r.ReadByte(); b {
				case 'F': // ends its side first, and reads on
					c.CloseWrite()
					_, err := io.ReadFull(r, make([]byte, 5))
					if err == nil {
						_, err = r.ReadByte()
					}
					ends <- err
				case 'f': // has the last word after the client's end
					_, err := r.ReadByte()
					io.WriteString(c, "last")
					ends <- err
				case 'Z':
					c.SetLinger(0)
				case 'z':
					_, err := r.ReadByte()
					ends <- err
				}
			})
			w := newWorld(t, server, server)
			w.target.SetRules(rules, Kubelet{})

			c := w.connect()
			c.send("F")
			_, err := c.r.ReadByte()
			assert.Equal(t, io.EOF, err, "the server's half-close")
			c.send("hello")
			c.CloseWrite()
			assert.Equal(t, io.EOF, <-ends)

			c = w.connect()
			c.send("f")
			c.CloseWrite()
			got, err := c.rest()
			assert.NoError(t, err)
			assert.Equal(t, "last", got, "after the client's half-close")
			assert.Equal(t, io.EOF, <-ends)

			c = w.connect()
			c.send("Z")
			_, err = c.r.ReadByte()
			assert.ErrorIs(t, err, syscall.ECONNRESET, "the server's reset")

			c = w.connect()
			c.send("z")
			opened := func() bool {
				return w.target.Stats().Open == 1 &&
					(w.appDials() > 3 || w.laptop.opened() > 3)
			}
			require.Eventually(t, opened, 30*time.Second, time.Millisecond)
			c.SetLinger(0)
			c.Close()
			assert.ErrorIs(t, <-ends, syscall.ECONNRESET, "the client's reset")
		})
	}
}

// TestEveryKindOfProbeReachesTheAppUnderEveryKindOfRule makes the probes that the kubelet makes, in
// the way it makes them.
func TestEveryKindOfProbeReachesTheAppUnderEveryKindOfRule(t *testing.T) {
	serve := func(name string, status grpc_health_v1.HealthCheckResponse_ServingStatus) (httpAddr,
		grpcAddr string) {
		s, h := grpc.NewServer(), health.NewServer()
		h.SetServingStatus("", status)
		grpc_health_v1.RegisterHealthServer(s, h)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return says(t, name), l.Addr().String()
	}
	appHTTP, appGRPC := serve("app", grpc_health_v1.HealthCheckResponse_SERVING)
	laptopHTTP, laptopGRPC := serve("laptop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	kubelet := Kubelet{HostIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		HTTPPaths: []string{"/healthz"}, TCP: true, GRPC: true}
	every := Rule{InterceptUID: "all", Namespace: "shop", Name: "orders", Connected: true}
	for name, rules := range map[string][]Rule{
		"requests with a header": {rule(t, "ua", "user-agent", "kube-probe/1.34")},
		"every request":          {every}, "every connection": {tcpRule()},
		"every connection and every request": {tcpRule(), every},
		"a laptop that is away":              {{InterceptUID: "x", TCP: true}},
	} {
		t.Run("http, "+name, func(t *testing.T) {
			w := newWorld(t, appHTTP, laptopHTTP)
			w.target.SetRules(rules, kubelet)
			req, _ := http.NewRequest("GET", "http://"+w.addr+"/healthz", nil)
			req.Header.Set("User-Agent", "kube-probe/1.34")
			req.Close = true // as the kubelet does
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			assert.Equal(t, "app GET /healthz 0\n", string(body))
			assert.Zero(t, w.laptop.opened())
		})
		t.Run("tcp, "+name, func(t *testing.T) {
			w := newWorld(t, appHTTP, laptopHTTP)
			w.target.SetRules(rules, kubelet)
			w.connect().Close()
			require.Eventually(t, func() bool { return w.appDials() == 1 }, 30*time.Second, time.Millisecond)
			assert.Zero(t, w.laptop.opened())
		})
		t.Run("grpc, "+name, func(t *testing.T) {
			w := newWorld(t, appGRPC, laptopGRPC)
			w.target.SetRules(rules, kubelet)
			cc, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithUserAgent("kube-probe/1.34"))
			require.NoError(t, err)
			defer cc.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			answer, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			require.NoError(t, err)
			assert.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, answer.GetStatus())
			assert.Zero(t, w.laptop.opened())
		})
	}
}
