// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The app and the load are processes of their own, as they are in a cluster: this test's binary,
// told by its environment what to be.
const roleVariable = "SIDESTEP_PROXY_BENCH_ROLE"

func TestMain(m *testing.M) {
	switch role := strings.Fields(os.Getenv(roleVariable)); {
	case len(role) == 0:
		code := m.Run()
		if left := leaked(); code == 0 && left != "" {
			fmt.Println("goroutines of the proxy are left behind:\n" + left)
			code = 1
		}
		os.Exit(code)
	case role[0] == "app":
		benchApp()
	case role[0] == "answers":
		benchAnswers()
	case role[0] == "h2app":
		benchH2App()
	default:
		benchLoad(role[0], role[1], role[2], role[3])
	}
}

// leaked returns the stacks of goroutines of the proxy that are still there some time after all
// tests.
func leaked() string {
	var left []string
	for range 100 {
		left = nil
		all := make([]byte, 10<<20)
		all = all[:runtime.Stack(all, true)]
		for stack := range strings.SplitSeq(string(all), "\n\n") {
			if strings.Contains(stack, "/proxy/http1.") || strings.Contains(stack, "/proxy/tap.") ||
				strings.Contains(stack, "/proxy/http2.") || strings.Contains(stack, "/proxy/stream.") ||
				strings.Contains(stack, "proxy.(*connection)") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}

// benchApp serves until its standard input ends.
func benchApp() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	block := make([]byte, 1<<20)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if size, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/bulk/")); size > 0 {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			for ; size > 0; size -= len(block) {
				w.Write(block[:min(size, len(block))])
			}
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello, this is the app\n")
	}))
	io.Copy(io.Discard, os.Stdin)
}

// benchLoad prints how much it got done: requests per second and the median and 99th percentile
// latency, or MiB per second.
func benchLoad(kind, addr, conns, millis string) {
	n, _ := strconv.Atoi(conns)
	ms, _ := strconv.Atoi(millis)
	request := "GET /api/orders?limit=20 HTTP/1.1\r\nHost: orders.shop\r\nUser-Agent: load/1.0\r\nAccept: */*\r\n" +
		"X-Request-Id: 2c9f0d8e-5a2e-4f0c-9d0c-1f0a6c0f3b7e\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
	const size = 64 << 20
	switch kind {
	case "down":
		request = fmt.Sprintf("GET /bulk/%d HTTP/1.1\r\nHost: orders.shop\r\n\r\n", size)
	case "up":
		request = fmt.Sprintf("POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: %d\r\n\r\n", size)
	}
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	start := time.Now()
	end := start.Add(time.Duration(ms) * time.Millisecond)
	for range n {
		wg.Go(func() {
			times := benchConn(addr, request, kind == "up", size, end)
			mu.Lock()
			all = append(all, times...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(start).Seconds()
	slices.Sort(all)
	if kind == "requests" {
		fmt.Println(float64(len(all))/took, all[len(all)/2].Seconds()*1e6,
			all[len(all)*99/100].Seconds()*1e6, len(all))
		return
	}
	fmt.Println(float64(len(all)*size)/took/(1<<20), 0, 0, len(all))
}

func benchConn(addr, request string, upload bool, size int, end time.Time) (times []time.Duration) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	for {
		start := time.Now()
		if start.After(end) {
			return times
		}
		io.WriteString(c, request)
		if upload {
			for left := size; left > 0; left -= len(buf) {
				c.Write(buf[:min(left, len(buf))])
			}
		}
		have, want := 0, -1
		for want < 0 || have < want {
			p := buf
			if want < 0 {
				p = buf[have:]
			}
			n, err := c.Read(p)
			if err != nil {
				panic(err)
			}
			have += n
			if want < 0 {
				if i := bytes.Index(buf[:have], []byte("\r\n\r\n")); i >= 0 {
					j := bytes.Index(buf[:i], []byte("Content-Length: ")) + len("Content-Length: ")
					k := bytes.IndexByte(buf[j:], '\r')
					length, _ := strconv.Atoi(string(buf[j : j+k]))
					want = i + 4 + length
				}
			}
		}
		times = append(times, time.Since(start))
	}
}

// cpuTime is what this process, which is the proxy, has used so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func role(b *testing.B, args ...any) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+strings.TrimSpace(fmt.Sprintln(args...)))
	cmd.Stderr = os.Stderr
	return cmd
}

// benchWorld returns the addresses of the app, of the proxy and of a httputil.ReverseProxy in front
// of it.
func benchWorld(b *testing.B) map[string]string {
	cmd := role(b, "app")
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	app, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	app = strings.TrimSpace(app)

	w := &world{app: app}
	proxy, target := New(Config{}), NewTarget("shop/orders-0", w)
	target.SetRules([]Rule{headerRule(b)}, Kubelet{})
	addr := serveOn(b, func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, target) })

	to, _ := url.Parse("http://" + app)
	reverse := httputil.NewSingleHostReverseProxy(to)
	reverse.Transport = &http.Transport{MaxIdleConnsPerHost: 100}
	return map[string]string{"direct": app, "proxy": addr, "reverseproxy": httpServer(b, reverse.ServeHTTP)}
}

// BenchmarkAgainstDirect reports what the proxy makes of the same load as the app gets directly,
// and, for comparison, a httputil.ReverseProxy. The machine is shared by load, proxy and app, so
// ratios tell more than figures.
func BenchmarkAgainstDirect(b *testing.B) {
	for _, load := range []struct {
		kind  string
		conns int
		unit  string
	}{{"requests", 1, "req/s"}, {"requests", 32, "req/s"}, {"down", 1, "MiB/s"}, {"up", 1, "MiB/s"}} {
		b.Run(fmt.Sprintf("%s/connections=%d", load.kind, load.conns), func(b *testing.B) {
			addrs := benchWorld(b)
			rates, p50s, p99s, costs := map[string][]float64{}, map[string][]float64{},
				map[string][]float64{}, map[string][]float64{}
			for b.Loop() {
				for _, way := range []string{"direct", "proxy", "reverseproxy"} {
					before := cpuTime()
					out, err := role(b, load.kind, addrs[way], load.conns, 500).Output()
					require.NoError(b, err)
					var rate, p50, p99, n float64
					_, err = fmt.Sscan(string(out), &rate, &p50, &p99, &n)
					require.NoError(b, err)
					costs[way] = append(costs[way], float64((cpuTime()-before).Microseconds())/n)
					rates[way] = append(rates[way], rate)
					p50s[way] = append(p50s[way], p50)
					p99s[way] = append(p99s[way], p99)
				}
			}
			median := func(v []float64) float64 {
				slices.Sort(v)
				return v[len(v)/2]
			}
			for _, way := range []string{"direct", "proxy", "reverseproxy"} {
				b.ReportMetric(median(rates[way]), way+"-"+load.unit)
				if load.kind == "requests" {
					b.ReportMetric(median(p50s[way]), way+"-p50-µs")
					b.ReportMetric(median(p99s[way]), way+"-p99-µs")
				}
				if way != "direct" {
					b.ReportMetric(median(costs[way]), way+"-cpu-µs/req")
				}
			}
			b.ReportMetric(median(rates["proxy"])/median(rates["direct"]), "of-direct")
			b.ReportMetric(median(rates["reverseproxy"])/median(rates["direct"]), "reverseproxy-of-direct")
			b.ReportMetric(0, "ns/op")
		})
	}
}
