// SPDX-License-Identifier: Apache-2.0

// Package http2 runs the proxy against other implementations of HTTP/2, whose modules the product does not need.
package http2

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// world is a proxy between an app and a laptop, both of which are servers on this machine. A gRPC
// server stands for the manager.
type world struct {
	agentpb.UnimplementedAgentsServer
	clientpb.UnimplementedClientsServer
	app, local string
	parked     chan parked
	agents     agentpb.AgentsClient
	target     *proxy.Target
}

type parked struct {
	stream tunnel.Stream
	done   chan error
}

func (w *world) Accept(s grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	p := parked{s, make(chan error, 1)}
	select {
	case w.parked <- p:
		return <-p.done
	case <-s.Context().Done():
		return nil
	}
}

func (w *world) Tunnel(s grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	open, err := tunnel.RecvOpen(s)
	if err != nil {
		return err
	}
	p := <-w.parked
	if err = tunnel.SendOpen(p.stream, open); err == nil {
		err = tunnel.Relay(s, p.stream)
	}
	p.done <- err
	return err
}

// deliver connects tunnels to the local address, one after another.
func (w *world) deliver(ctx context.Context, clients clientpb.ClientsClient) {
	for {
		sctx, cancel := context.WithCancel(ctx)
		s, err := clients.Accept(sctx)
		if err != nil {
			cancel()
			return
		}
		_, c, err := tunnel.Accept(s, tunnel.OnClose(cancel))
		if err != nil {
			return
		}
		tcp, err := net.Dial("tcp", w.local)
		if err != nil {
			c.Answer(tunnelpb.Opened_REFUSED, err.Error())
			c.Close()
			continue
		}
		c.Answer(tunnelpb.Opened_OK, "")
		go tunnel.Copy(tcp.(*net.TCPConn), c)
	}
}

// Open implements proxy.Tunnels.
func (w *world) Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s, err := w.agents.Tunnel(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return tunnel.Open(s, open, tunnel.OnClose(cancel))
}

// DialApp implements proxy.AppDialer.
func (w *world) DialApp(_, _ netip.AddrPort, _ bool) (stream.Socket, func(context.Context) error, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", w.app)
	if err != nil {
		return nil, nil, err
	}
	return c.(*net.TCPConn), nil, nil
}

func listen(t *testing.T) net.Listener {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// newWorld starts a world whose rule claims requests with "x-dev: me", and returns the address of
// its proxy.
func newWorld(t *testing.T, app, local string) (w *world, addr string) {
	w = &world{app: app, local: local, parked: make(chan parked)}
	l := listen(t)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	agentpb.RegisterAgentsServer(server, w)
	clientpb.RegisterClientsServer(server, w)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	dial := func() *grpc.ClientConn {
		cc, err := grpc.NewClient("passthrough:"+l.Addr().String(),
			append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		require.NoError(t, err)
		t.Cleanup(func() { cc.Close() })
		return cc
	}
	w.agents = agentpb.NewAgentsClient(dial())
	for range 4 {
		go w.deliver(t.Context(), clientpb.NewClientsClient(dial()))
	}

	rule, err := match.FromProto(&agentpb.HTTPMatch{Headers: []*agentpb.HeaderMatch{
		{Name: "x-dev", Match: &agentpb.HeaderMatch_Value{Value: "me"}}}})
	require.NoError(t, err)
	w.target = proxy.NewTarget("shop/orders-0", w)
	w.target.SetRules([]proxy.Rule{{InterceptUID: "uid", Namespace: "shop", Name: "orders", HTTP: rule,
		Connected: true}}, proxy.Kubelet{})
	p := proxy.New(proxy.Config{Tunnels: w})
	pl := listen(t)
	go func() {
		for {
			c, err := pl.Accept()
			if err != nil {
				return
			}
			go p.Serve(t.Context(), c.(*net.TCPConn), w.target)
		}
	}()
	return w, pl.Addr().String()
}
