// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// TestNobodyNoticesALaptopThatComesAndGoes sends requests that may be done twice, matched and not,
// while the laptop's tunnels break, its process refuses connections, the manager goes away, and the
// rules change. Every request must be answered, those that are not matched by the app.
func TestNobodyNoticesALaptopThatComesAndGoes(t *testing.T) {
	app, local := says(t, "app"), says(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	var over atomic.Bool
	var chaos, load sync.WaitGroup
	chaos.Go(func() {
		for i := 0; !over.Load(); i++ {
			switch i % 5 {
			case 0:
				w.laptop.kill()
			case 1:
				w.laptop.set(func(l *laptop) { l.local = "127.0.0.1:1" })
				w.laptop.kill()
			case 2:
				w.laptop.set(func(l *laptop) { l.local, l.gone = local, true })
			case 3:
				w.laptop.set(func(l *laptop) { l.gone = false })
				w.target.SetRules(nil, Kubelet{})
			case 4:
				w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			}
			time.Sleep(15 * time.Millisecond)
		}
	})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, MaxConnsPerHost: 32}}
	t.Cleanup(client.CloseIdleConnections)
	var laptops, apps atomic.Int64
	for i := range 32 {
		load.Go(func() {
			for j := range 60 {
				body := bytes.Repeat([]byte{'x'}, (i*j*31)%3000)
				req, _ := http.NewRequest("PUT", fmt.Sprintf("http://%s/%d/%d", w.addr, i, j),
					bytes.NewReader(body))
				mine := (i+j)%2 == 0
				if mine {
					req.Header.Set("X-Dev", "me")
				}
				resp, err := client.Do(req)
				if !assert.NoError(t, err) {
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if !assert.NoError(t, err) {
					return
				}
				who, rest, _ := strings.Cut(string(got), " ")
				assert.Equal(t, fmt.Sprintf("PUT /%d/%d %d\n", i, j, len(body)), rest)
				if who == "laptop" {
					assert.True(t, mine)
					laptops.Add(1)
				} else {
					apps.Add(1)
				}
			}
		})
	}
	load.Wait()
	over.Store(true)
	chaos.Wait()
	t.Logf("%d requests answered by the laptop, %d by the app", laptops.Load(), apps.Load())
	assert.NotZero(t, laptops.Load())
}

type faultyApp struct{}

func (faultyApp) DialApp(netip.AddrPort, netip.AddrPort, bool) (stream.Socket,
	func(context.Context) error, error) {
	panic("fault in the dialer")
}

type faultyTunnels struct{}

func (faultyTunnels) Open(context.Context, *tunnelpb.Open) (*tunnel.Conn, error) {
	panic("fault in the tunnels")
}

// faultyAgain works once.
type faultyAgain struct {
	*laptop
	used atomic.Bool
}

func (f *faultyAgain) Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	if f.used.Swap(true) {
		panic("fault in the tunnels")
	}
	return f.laptop.Open(ctx, open)
}

func TestAFaultWhileAnExchangeIsMendedCostsOneConnection(t *testing.T) {
	w := newWorld(t, says(t, "app"), dying(t, 2, "", false))
	metrics := prometheus.NewRegistry()
	tunnels := &faultyAgain{laptop: w.laptop}
	proxy := New(Config{Tunnels: tunnels, Metrics: metrics, Log: slog.New(slog.DiscardHandler)})
	addr := serveOn(t, func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, w.target) })
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for _, pipelined := range []string{"", "GET / HTTP/1.1\r\nHost: o\r\n\r\n"} {
		tunnels.used.Store(false)
		c := connect(t, addr)
		assert.Equal(t, "laptop", c.get("/", mine))
		c.send("GET / HTTP/1.1\r\nHost: o\r\n%s\r\n%s", mine, pipelined)
		_, err := c.r.ReadByte()
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
	assert.EqualValues(t, 2, gathered(t, metrics)["sidestep_proxy_panics_total"])
}

func TestAFaultCostsOneConnection(t *testing.T) {
	for name, test := range map[string]struct {
		app   AppDialer
		rules []Rule
	}{
		"while the app is dialled":                  {faultyApp{}, nil},
		"while the app is dialled for a connection": {faultyApp{}, []Rule{{TCP: true}}},
		"while a tunnel is opened":                  {&world{app: says(t, "app")}, []Rule{{Connected: true}}},
		"while a tunnel is opened for a connection": {&world{}, []Rule{{TCP: true, Connected: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			metrics := prometheus.NewRegistry()
			p := New(Config{Tunnels: faultyTunnels{}, Metrics: metrics, Log: slog.New(slog.DiscardHandler)})
			target := NewTarget("shop/orders-0", test.app)
			target.SetRules(test.rules, Kubelet{})
			addr := serveOn(t, func(ctx context.Context, c *net.TCPConn) { p.Serve(ctx, c, target) })
			c, err := net.Dial("tcp", addr)
			if err == nil {
				defer c.Close()
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: o\r\n\r\n")
				_, err = io.ReadAll(c)
			}
			assert.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "%v", err)
			assert.EqualValues(t, 1, gathered(t, metrics)["sidestep_proxy_panics_total"])
			assert.Eventually(t, func() bool { return target.Stats().Open == 0 }, time.Second, time.Millisecond)
		})
	}
}

// gathered returns the values of all metrics by name and label.
func gathered(t *testing.T, r *prometheus.Registry) map[string]float64 {
	families, err := r.Gather()
	require.NoError(t, err)
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	c.get("/", "")
	c.get("/", mine)
	c.get("/", mine)
	assert.EqualValues(t, 1, gathered(t, w.metrics)["sidestep_proxy_open_tunnels"])
	w.laptop.set(func(l *laptop) { l.gone = true })
	w.laptop.kill()
	require.Eventually(t, func() bool {
		return gathered(t,
			w.metrics)["sidestep_proxy_open_tunnels"] == 0
	}, time.Second, time.Millisecond)
	c.get("/", mine)
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	whole := w.connect()
	whole.get("/", mine)
	want := map[string]float64{
		"sidestep_proxy_connections_total":                2,
		"sidestep_proxy_open_connections":                 2,
		"sidestep_proxy_open_tunnels":                     0,
		"sidestep_proxy_requests_total app":               2,
		"sidestep_proxy_requests_total laptop":            2,
		"sidestep_proxy_fallback_requests_total":          1,
		"sidestep_proxy_claimed_connections_total app":    1,
		"sidestep_proxy_claimed_connections_total laptop": 0,
		"sidestep_proxy_unanswered_requests_total":        1,
		"sidestep_proxy_buffered_bytes":                   0,
		"sidestep_proxy_limits_met_total memory":          0,
		"sidestep_proxy_limits_met_total streams":         0,
		"sidestep_proxy_limits_met_total resets":          0,
		"sidestep_proxy_limits_met_total fields":          0,
		"sidestep_proxy_limits_met_total frames":          0,
		"sidestep_proxy_panics_total":                     0,
		"sidestep_proxy_wiretap_copies_total copied":      0,
		"sidestep_proxy_wiretap_copies_total cut":         0,
		"sidestep_proxy_wiretap_copies_total dropped":     0,
		"sidestep_proxy_wiretap_bytes":                    0,
		"sidestep_proxy_wiretap_tunnels":                  0,
	}
	// A request is counted when it was written, by when it may have been answered.
	assert.EventuallyWithT(t,
		func(t *assert.CollectT) { assert.Equal(t, want, gathered(w.t, w.metrics)) }, 10*time.Second,
		time.Millisecond)
}
