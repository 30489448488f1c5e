// SPDX-License-Identifier: Apache-2.0

package datagrams_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/datagrams"
	"sidestep.dev/sidestep/nodeagent/steer"
)

const number = 5353

// laptop is at the other end of all tunnels. It sends every datagram back; but in a tunnel whose
// first datagram is "stuck" it reads no more.
type laptop struct {
	agentpb.UnimplementedAgentsServer
	agents agentpb.AgentsClient
}

func (l *laptop) Tunnel(stream agentpb.Agents_TunnelServer) error {
	_, c, err := tunnel.Accept(stream)
	if err != nil {
		return err
	}
	var in, out []byte
	if in, err = tunnel.ReadDatagram(c, in); err != nil {
		return err
	}
	if err := c.Answer(tunnelpb.Opened_OK, ""); err != nil {
		return err
	}
	if string(in) == "stuck" {
		<-stream.Context().Done()
		return nil
	}
	for err == nil {
		if out, err = tunnel.WriteDatagram(c, in, out); err == nil {
			in, err = tunnel.ReadDatagram(c, in)
		}
	}
	return c.CloseWrite()
}

func (l *laptop) Open(_ context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := l.agents.Tunnel(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return tunnel.Open(stream, open, tunnel.OnClose(cancel))
}

func newLaptop(t *testing.T) *laptop {
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	l := &laptop{}
	agentpb.RegisterAgentsServer(server, l)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:laptop",
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn,
				error) {
				return listener.DialContext(ctx)
			}))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	l.agents = agentpb.NewAgentsClient(conn)
	return l
}

// world is a pod whose port is steered.
type world struct {
	node    *testnet.Node
	pod     *testnet.Pod
	relay   *datagrams.Pod
	metrics *prometheus.Registry
}

func newWorld(t *testing.T, change func(*datagrams.Config)) *world {
	w := &world{node: testnet.NewNode(t), metrics: prometheus.NewRegistry()}
	w.pod = w.node.NewPod(t)
	n := steer.NewNode(testnet.BPFFS(t), "node", slog.New(slog.DiscardHandler),
		steer.WithDatapath(steer.SkLookup), steer.WithProc(w.node.Proc()))
	program, err := n.Load()
	require.NoError(t, err)
	cfg := datagrams.Config{
		Name: "shop/resolver-0", IPs: []netip.Addr{w.pod.IP4, w.pod.IP6}, Steering: program,
		Tunnels: newLaptop(t),
		Metrics: datagrams.NewMetrics(w.metrics), Log: slog.New(slog.DiscardHandler),
		OpenTimeout: 20 * time.Second,
	}
	change(&cfg)
	w.relay, err = datagrams.Open(w.pod.Namespace, cfg)
	require.NoError(t, err)
	require.NoError(t, program.Attach(w.pod))
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				_ = n.Beat()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		assert.NoError(t, w.relay.Close())
		assert.NoError(t, program.Detach())
		assert.NoError(t, program.Close())
		assert.NoError(t, n.Close())
	})
	require.NoError(t, w.relay.SetRules(map[uint16]*datagrams.Rule{number: {InterceptUID: "i",
		Connected: true}}))
	require.NoError(t, w.relay.Prove(number))
	return w
}

func (w *world) dial(t *testing.T) net.Conn {
	var c net.Conn
	require.NoError(t, w.node.Do(func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(w.pod.IP4, number).String())
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask asks until there is an answer: the agent's heartbeat may be late.
func ask(t *testing.T, c net.Conn, text string) {
	t.Helper()
	buffer := make([]byte, 1<<16)
	for range 20 {
		_, _ = c.Write([]byte(text)) // nothing else listens: ECONNREFUSED if the heartbeat is late
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		if n, err := c.Read(buffer); err == nil {
			assert.Equal(t, text, string(buffer[:n]))
			return
		}
	}
	assert.Fail(t, "there is no answer")
}

// measured is the value of a metric, or of one of its series.
func (w *world) measured(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := w.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "sidestep_nodeagent_udp_"+name &&
				(label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	require.Fail(t, "there is no metric "+name)
	return 0
}

func TestFlowsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *datagrams.Config) { c.MaxFlows = 10 })
	var clients []net.Conn
	for range 30 {
		clients = append(clients, w.dial(t))
		ask(t, clients[len(clients)-1], "hello")
	}
	assert.Eventually(t, func() bool { return w.measured(t, "flows", "") == 10 }, 20*time.Second,
		10*time.Millisecond)
	evicted := w.measured(t, "flows_evicted_total", "")
	assert.GreaterOrEqual(t, evicted, 20.0)
	for _, c := range clients[20:] {
		ask(t, c, "still there")
	}
	assert.Equal(t, evicted, w.measured(t, "flows_evicted_total", ""),
		"those that were used last are still there")
	ask(t, clients[0], "and again")
}

func TestFlowsEndWhenTheyAreIdle(t *testing.T) {
	w := newWorld(t, func(c *datagrams.Config) {
		c.Idle, c.IdleOnce = 400*time.Millisecond,
			100*time.Millisecond
	})
	c := w.dial(t)
	for range 3 {
		ask(t, c, "hello")
		require.Eventually(t, func() bool { return w.measured(t, "flows", "") == 0 }, 20*time.Second,
			10*time.Millisecond)
	}
	assert.Zero(t, w.relay.Stats(number).Fallbacks)
	assert.GreaterOrEqual(t, w.relay.Stats(number).Matched, uint64(3))
}

func TestLaptopThatReadsNothingHoldsUpNobodyElse(t *testing.T) {
	w := newWorld(t, func(*datagrams.Config) {})
	stuck := w.dial(t)
	large := []byte(strings.Repeat("x", 8000))
	require.Eventually(t, func() bool {
		_, _ = stuck.Write([]byte("stuck"))
		return w.relay.Stats(number).Matched == 1
	}, 20*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool {
		for range 100 {
			_, _ = stuck.Write(large)
		}
		return w.measured(t, "datagrams_total", "nowhere") > 0
	}, 30*time.Second, time.Millisecond, "there is room for so many only")
	ask(t, w.dial(t), "somebody else")
}
