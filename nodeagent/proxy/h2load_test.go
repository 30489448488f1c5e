// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "google.golang.org/grpc/interop/grpc_testing"
)

// h2cServer serves HTTP/2 with prior knowledge, and says who it is.
func h2cServer(t testing.TB, h http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := h2c(h)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func h2c(h http.HandlerFunc) *http.Server {
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

func saysH2(t testing.TB, name string) string {
	return h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			fmt.Fprintf(w, "%s %s %s %d\n", name, r.Method, r.RequestURI, n)
		}
	})
}

// h2load runs h2load, and returns requests per second, and how many did not get a 2xx.
func h2load(t testing.TB, args ...string) (rate float64, failed int) {
	out, err := exec.Command("h2load", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	m := regexp.MustCompile(`finished in [^,]*, ([0-9.]+) req/s`).FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	rate, err = strconv.ParseFloat(string(m[1]), 64)
	require.NoError(t, err)
	m = regexp.MustCompile(`requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded`).FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	total, _ := strconv.Atoi(string(m[1]))
	good, _ := strconv.Atoi(string(m[2]))
	return rate, total - good
}

func TestH2loadSeesNoDifference(t *testing.T) {
	w := newWorld(t, saysH2(t, "app"), saysH2(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	body := t.TempDir() + "/body"
	require.NoError(t, os.WriteFile(body, make([]byte, 100_000), 0o600))
	for _, args := range [][]string{
		{"-n2000", "-c4", "-m32"},
		{"-n200", "-c4", "-m8", "-d", body},
		{"-n300", "-c2", "-m100", "-w16", "-W16"}, // windows of 65535 bytes
	} {
		for _, who := range []string{"you", "me"} {
			_, failed := h2load(t, append(args, "-H", "x-dev: "+who, "http://"+w.addr+"/")...)
			assert.Zero(t, failed, "%v %s", args, who)
		}
	}
	assert.Zero(t, w.target.Stats().Intercepts["uid-1"].Fallbacks)
	assert.Equal(t, uint64(2500), w.target.Stats().Intercepts["uid-1"].Matched)
}

// benchH2App serves HTTP/2 until its standard input ends.
func benchH2App() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	block := make([]byte, 1<<20)
	go h2c(func(w http.ResponseWriter, r *http.Request) {
		if size, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/bulk/")); size > 0 {
			for ; size > 0; size -= len(block) {
				w.Write(block[:min(size, len(block))])
			}
			return
		}
		io.WriteString(w, "hello, this is the app\n")
	}).Serve(l)
	fmt.Println(l.Addr())
	io.Copy(io.Discard, os.Stdin)
}

func benchChild(b *testing.B, what string) string {
	cmd := role(b, what)
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	return strings.TrimSpace(addr)
}

// BenchmarkH2load reports what the proxy makes of HTTP/2 that is not matched. Load, proxy and app
// share the machine.
func BenchmarkH2load(b *testing.B) {
	app := benchChild(b, "h2app")
	w := &world{app: app}
	proxy, target := New(Config{}), NewTarget("shop/orders-0", w)
	target.SetRules([]Rule{headerRule(b)}, Kubelet{})
	addr := serveOn(b, func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, target) })
	for name, load := range map[string][]string{
		"connections=1/streams=32": {"-c1", "-m32", "-n20000"},
		"connections=32/streams=8": {"-c32", "-m8", "-n20000"},
		"bulk":                     {"-c1", "-m1", "-n5", "-w24", "-W24"},
	} {
		b.Run(name, func(b *testing.B) {
			path := "/"
			if name == "bulk" {
				path = "/bulk/67108864"
			}
			var direct, through, cpu []float64
			for b.Loop() {
				rate, failed := h2load(b, append(load, "http://"+app+path)...)
				require.Zero(b, failed)
				direct = append(direct, rate)
				before := cpuTime()
				rate, failed = h2load(b, append(load, "http://"+addr+path)...)
				require.Zero(b, failed)
				n, _ := strconv.Atoi(load[2][2:])
				cpu = append(cpu, float64((cpuTime()-before).Microseconds())/float64(n))
				through = append(through, rate)
			}
			median := func(v []float64) float64 {
				slices.Sort(v)
				return v[len(v)/2]
			}
			b.ReportMetric(median(direct), "direct-req/s")
			b.ReportMetric(median(through), "proxy-req/s")
			b.ReportMetric(median(cpu), "proxy-cpu-µs/req")
			b.ReportMetric(median(through)/median(direct), "of-direct")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkGRPC reports the latency of unary calls one after another, directly, through the proxy
// to the app, and to a laptop on the same machine.
func BenchmarkGRPC(b *testing.B) {
	_, _, app := grpcServer(b, "app")
	_, _, local := grpcServer(b, "laptop")
	w := &world{app: app, laptop: newLaptop(b)}
	w.laptop.local = local
	proxy, target := New(Config{Tunnels: w.laptop}), NewTarget("shop/orders-0", w)
	target.SetRules([]Rule{headerRule(b)}, Kubelet{})
	addr := serveOn(b, func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, target) })
	for _, way := range []struct {
		name, addr string
		me         bool
	}{{"direct", app, false}, {"passed", addr, false}, {"matched", addr, true}} {
		b.Run(way.name, func(b *testing.B) {
			c := grpcClient(b, way.addr)
			ctx, _ := as(b, way.me)
			req := &pb.SimpleRequest{Payload: &pb.Payload{Body: make([]byte, 100)}}
			_, err := c.UnaryCall(ctx, req)
			require.NoError(b, err)
			var all []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := c.UnaryCall(ctx, req); err != nil {
					b.Fatal(err)
				}
				all = append(all, time.Since(start))
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
		})
	}
}
