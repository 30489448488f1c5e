// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// world is a pod's app, a proxy in front of it, and a laptop behind a tunnel over gRPC, all in this
// process.
type world struct {
	t       *testing.T
	proxy   *Proxy
	target  *Target
	metrics *prometheus.Registry
	addr    string // where clients connect

	app   string // the app's address; empty: it refuses connections
	mu    sync.Mutex
	dials int

	laptop *laptop
}

// laptop answers tunnels by connecting to a local address. Both its end and the node agent's are
// clients of one gRPC server, as they are of the manager.
type laptop struct {
	mu     sync.Mutex
	local  string                                      // the local process
	answer func(*tunnelpb.Open) tunnelpb.Opened_Result // nil: OK
	delay  <-chan struct{}                             // hold OPENED back until it is closed
	gone   bool                                        // there is no manager
	opens  int
	conns  []*tunnel.Conn
	cuts   []func() // end the streams of conns
	agents agentpb.AgentsClient
}

func (l *laptop) set(f func(*laptop)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

// kill breaks all tunnels.
func (l *laptop) kill() {
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, c := range conns {
		c.Reset("laptop died")
	}
}

// cut takes the network away from all tunnels.
func (l *laptop) cut() {
	l.mu.Lock()
	cuts := l.cuts
	l.cuts = nil
	l.mu.Unlock()
	for _, cut := range cuts {
		cut()
	}
}

func (l *laptop) opened() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opens
}

// manager is as much of one as tunnels need.
type manager struct {
	agentpb.UnimplementedAgentsServer
	clientpb.UnimplementedClientsServer
	parked chan parked
}

type parked struct {
	stream tunnel.Stream
	done   chan error
}

func (m *manager) Accept(s grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	p := parked{s, make(chan error, 1)}
	select {
	case m.parked <- p:
		return <-p.done
	case <-s.Context().Done():
		return nil
	}
}

func (m *manager) Tunnel(s grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	open, err := tunnel.RecvOpen(s)
	if err != nil {
		return err
	}
	p := <-m.parked
	err = tunnel.SendOpen(p.stream, open)
	if err == nil {
		err = tunnel.Relay(s, p.stream)
	}
	p.done <- err
	return err
}

// accept serves one parked stream after another.
func (l *laptop) accept(ctx context.Context, clients clientpb.ClientsClient) {
	for {
		sctx, cancel := context.WithCancel(ctx)
		s, err := clients.Accept(sctx)
		if err != nil {
			cancel()
			return
		}
		open, c, err := tunnel.Accept(s, tunnel.OnClose(cancel))
		if err != nil {
			return
		}
		l.set(func(l *laptop) { l.cuts = append(l.cuts, cancel) })
		go l.deliver(ctx, open, c)
	}
}

func (l *laptop) deliver(ctx context.Context, open *tunnelpb.Open, c *tunnel.Conn) {
	l.mu.Lock()
	l.opens++
	l.conns = append(l.conns, c)
	local, answer, delay := l.local, l.answer, l.delay
	l.mu.Unlock()
	if delay != nil {
		select {
		case <-delay:
		case <-ctx.Done():
			return
		}
	}
	result, message := tunnelpb.Opened_OK, ""
	if answer != nil {
		result, message = answer(open), "told so by the test"
	}
	var tcp net.Conn
	if result == tunnelpb.Opened_OK {
		var err error
		if tcp, err = net.Dial("tcp", local); err != nil {
			result, message = tunnelpb.Opened_REFUSED, err.Error()
		}
	}
	c.Answer(result, message)
	if result == tunnelpb.Opened_OK {
		tunnel.Copy(tcp.(*net.TCPConn), c)
		return
	}
	c.Close()
}

// Open implements Tunnels.
func (l *laptop) Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	l.mu.Lock()
	gone := l.gone
	l.mu.Unlock()
	if gone {
		return nil, errors.New("no connection to the manager")
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s, err := l.agents.Tunnel(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return tunnel.Open(s, open, tunnel.OnClose(cancel))
}

func newLaptop(t testing.TB) *laptop {
	l, m := &laptop{}, &manager{parked: make(chan parked)}
	pipe := bufconn.Listen(1 << 20)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	agentpb.RegisterAgentsServer(server, m)
	clientpb.RegisterClientsServer(server, m)
	go server.Serve(pipe)
	dial := func() *grpc.ClientConn {
		cc, err := grpc.NewClient("passthrough:manager", append(tunnel.DialOptions(),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn,
				error) {
				return pipe.DialContext(ctx)
			}),
			grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		require.NoError(t, err)
		return cc
	}
	agent, client := dial(), dial()
	l.agents = agentpb.NewAgentsClient(agent)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { l.accept(ctx, clientpb.NewClientsClient(client)) })
	}
	t.Cleanup(func() {
		cancel()
		agent.Close()
		client.Close()
		server.Stop()
		wg.Wait()
	})
	return l
}

// DialApp implements AppDialer.
func (w *world) DialApp(client, app netip.AddrPort, _ bool) (stream.Socket, func(context.Context) error,
	error) {
	w.mu.Lock()
	w.dials++
	addr, dials := w.app, w.dials
	w.mu.Unlock()
	if addr == "" {
		return nil, nil, errors.New("connection refused")
	}
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	if dials%2 == 0 {
		return c.(*net.TCPConn), func(context.Context) error { return nil }, nil
	}
	return c.(*net.TCPConn), nil, nil
}

func (w *world) setApp(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.app = addr
}

func (w *world) appDials() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials
}

// newWorld starts a world whose app and local process are at these addresses. Its end checks that
// all connections were let go. It waits longer for laptops than a busy machine needs.
func newWorld(t *testing.T, app, local string) *world {
	return newWorldWith(t, app, local, 20*time.Second)
}

// impatient is the OpenTimeout of tests in which the laptop answers too late or never.
const impatient = 500 * time.Millisecond

// newWorldWith is newWorld with another OpenTimeout.
func newWorldWith(t *testing.T, app, local string, openTimeout time.Duration) *world {
	w := &world{t: t, app: app, laptop: newLaptop(t), metrics: prometheus.NewRegistry()}
	w.laptop.local = local
	level := slog.LevelWarn + 4
	if os.Getenv("PROXY_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	w.proxy = New(Config{
		Tunnels: w.laptop, OpenTimeout: openTimeout, Metrics: w.metrics,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	})
	w.target = NewTarget("shop/orders-0", w)
	w.addr = serveOn(t, func(ctx context.Context, c *net.TCPConn) { w.proxy.Serve(ctx, c, w.target) })
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return w.target.Stats().Open == 0 }, 30*time.Second,
			5*time.Millisecond,
			"connections are still being served")
	})
	return w
}

// serveOn accepts connections until the test ends, and waits for them to be done.
func serveOn(t testing.TB, serve func(context.Context, *net.TCPConn)) string {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(ctx, c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	return l.Addr().String()
}

// httpServer runs a net/http server until the test ends.
func httpServer(t testing.TB, h http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// rawServer runs a hand-made server: serve has each connection, and closes it by returning.
func rawServer(t testing.TB, serve func(c *net.TCPConn, r *bufio.Reader)) string {
	return serveOn(t, func(ctx context.Context, c *net.TCPConn) {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		defer c.Close()
		serve(c, bufio.NewReader(c))
	})
}

// says is a net/http server that answers with its name, the method, the target and the size of the
// body.
func says(t testing.TB, name string) string {
	return httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %s %s %d\n", name, r.Method, r.RequestURI, n)
	})
}

// headerRule matches requests with "x-dev: me".
func headerRule(t testing.TB) Rule { return rule(t, "uid-1", "x-dev", "me") }

func rule(t testing.TB, uid, name, value string) Rule {
	m, err := match.FromProto(&agentpb.HTTPMatch{Headers: []*agentpb.HeaderMatch{
		{Name: name, Match: &agentpb.HeaderMatch_Value{Value: value}}}})
	require.NoError(t, err)
	return Rule{InterceptUID: uid, Namespace: "shop", Name: "orders", HTTP: m, Connected: true}
}

// rawClient is a connection to the world.
type rawClient struct {
	*net.TCPConn
	t *testing.T
	r *bufio.Reader
}

func (w *world) connect() *rawClient { return connect(w.t, w.addr) }

func connect(t *testing.T, addr string) *rawClient {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { c.Close() })
	return &rawClient{TCPConn: c.(*net.TCPConn), t: t, r: bufio.NewReader(c)}
}

func (c *rawClient) send(format string, args ...any) {
	_, err := fmt.Fprintf(c, format, args...)
	require.NoError(c.t, err)
}

// response reads one response to a request with that method.
func (c *rawClient) response(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	require.NoError(c.t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp, string(body)
}

// get sends a GET with more header lines, and returns the body of the answer.
func (c *rawClient) get(path, more string) string {
	c.t.Helper()
	c.send("GET %s HTTP/1.1\r\nHost: orders\r\n%s\r\n", path, more)
	_, body := c.response("GET")
	return body
}

// rest reads up to the end of the stream.
func (c *rawClient) rest() (string, error) {
	b, err := io.ReadAll(c.r)
	return string(b), err
}

const mine = "X-Dev: me\r\n"
