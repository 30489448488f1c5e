// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkWiretap reports what an app behind the proxy is asked for under the same load without a
// wiretap, with one that matches nothing, with one that matches everything and whose laptop
// answers, and with one whose laptop hangs. The laptop, and the tunnels to it, share this machine's
// processors with the app and its load.
func BenchmarkWiretap(b *testing.B) {
	apps := make([]string, 2) // the app, and the laptop's local process
	for i := range apps {
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
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(b, err)
		apps[i] = strings.TrimSpace(line)
	}
	hang := rawServer(b, func(*net.TCPConn, *bufio.Reader) { <-b.Context().Done() })
	other := rule(b, "tap-1", "x-dev", "you")
	other.Wiretap = true
	ways := []struct {
		name  string
		rules []Rule
		local string
	}{
		{"none", nil, apps[1]}, {"no-match", []Rule{other}, apps[1]},
		{"all", []Rule{tapRule()}, apps[1]}, {"all-hanging", []Rule{tapRule()}, hang},
	}
	for _, load := range []struct {
		kind  string
		conns int
		unit  string
	}{{"requests", 1, "req/s"}, {"requests", 32, "req/s"}, {"up", 1, "MiB/s"}} {
		b.Run(fmt.Sprintf("%s/connections=%d", load.kind, load.conns), func(b *testing.B) {
			addrs, targets := make([]string, len(ways)), make([]*Target, len(ways))
			for i, way := range ways {
				laptop := newLaptop(b)
				laptop.local = way.local
				proxy, target := New(Config{Tunnels: laptop}), NewTarget("shop/orders-0", &world{app: apps[0]})
				target.SetRules(append([]Rule{headerRule(b)}, way.rules...), Kubelet{})
				addrs[i] = serveOn(b, func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, target) })
				targets[i] = target
			}
			rates, p99s := make([][]float64, len(ways)), make([][]float64, len(ways))
			for b.Loop() {
				for i := range ways {
					out, err := role(b, load.kind, addrs[i], load.conns, 500).Output()
					require.NoError(b, err)
					var rate, p50, p99, n float64
					_, err = fmt.Sscan(string(out), &rate, &p50, &p99, &n)
					require.NoError(b, err)
					rates[i], p99s[i] = append(rates[i], rate), append(p99s[i], p99)
				}
			}
			for i, way := range ways {
				slices.Sort(rates[i])
				slices.Sort(p99s[i])
				b.ReportMetric(rates[i][len(rates[i])/2], way.name+"-"+load.unit)
				if load.kind == "requests" {
					b.ReportMetric(p99s[i][len(p99s[i])/2], way.name+"-p99-µs")
				}
				if c := targets[i].Stats().Intercepts["tap-1"].Copies; c.Copied+c.Dropped > 0 {
					b.ReportMetric(100*float64(c.Copied)/float64(c.Copied+c.Dropped), way.name+"-%copied")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
