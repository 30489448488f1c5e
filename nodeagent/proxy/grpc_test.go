// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// greeter serves all four kinds of calls, and says who it is in each answer and in its trailers.
type greeter struct {
	pb.UnimplementedTestServiceServer
	name string

	mu       sync.Mutex
	canceled int // streams that their client gave up
}

func (g *greeter) payload(n int32) *pb.Payload {
	return &pb.Payload{Body: append([]byte(g.name+" "), make([]byte, n)...)}
}

func (g *greeter) trailer(s interface{ SetTrailer(metadata.MD) }) {
	s.SetTrailer(metadata.Pairs("who", g.name, "blob-bin", "\x00\xff"))
}

func (g *greeter) UnaryCall(ctx context.Context, req *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	grpc.SetTrailer(ctx, metadata.Pairs("who", g.name))
	if s := req.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.Code), g.name+" "+s.Message)
	}
	return &pb.SimpleResponse{Payload: g.payload(req.ResponseSize), Username: g.name}, nil
}

func (g *greeter) StreamingOutputCall(req *pb.StreamingOutputCallRequest,
	s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	g.trailer(s)
	for _, p := range req.ResponseParameters {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: g.payload(p.Size)}); err != nil {
			return err
		}
	}
	return nil
}

func (g *greeter) StreamingInputCall(s grpc.ClientStreamingServer[pb.StreamingInputCallRequest,
	pb.StreamingInputCallResponse]) error {
	g.trailer(s)
	var n int
	for {
		req, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			g.gaveUp()
			return err
		}
		n += len(req.Payload.GetBody())
	}
}

func (g *greeter) FullDuplexCall(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest,
	pb.StreamingOutputCallResponse]) error {
	g.trailer(s)
	for {
		req, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			g.gaveUp()
			return err
		}
		for _, p := range req.ResponseParameters {
			if err := s.Send(&pb.StreamingOutputCallResponse{Payload: g.payload(p.Size)}); err != nil {
				return err
			}
		}
	}
}

func (g *greeter) gaveUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.canceled++
}

func (g *greeter) givenUp() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.canceled
}

// grpcServer runs a gRPC server until the test ends.
func grpcServer(t testing.TB, name string, options ...grpc.ServerOption) (*greeter, *grpc.Server, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &greeter{name: name}
	s := grpc.NewServer(options...)
	pb.RegisterTestServiceServer(s, g)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return g, s, l.Addr().String()
}

// grpcClient is one connection to the world.
func grpcClient(t testing.TB, addr string, options ...grpc.DialOption) pb.TestServiceClient {
	cc, err := grpc.NewClient("passthrough:"+addr,
		append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { cc.Close() })
	return pb.NewTestServiceClient(cc)
}

// as is a context of one of the two kinds of callers, and who is to answer it.
func as(t testing.TB, me bool) (ctx context.Context, who string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	if me {
		return metadata.AppendToOutgoingContext(ctx, "x-dev", "me"), "laptop"
	}
	return metadata.AppendToOutgoingContext(ctx, "x-dev", "you"), "app"
}

// callAll makes one call of each kind, and returns the first thing that was not as it must be.
func callAll(ctx context.Context, c pb.TestServiceClient, who string) error {
	var trailer metadata.MD
	resp, err := c.UnaryCall(ctx,
		&pb.SimpleRequest{ResponseSize: 10, Payload: &pb.Payload{Body: make([]byte, 1000)}},
		grpc.Trailer(&trailer))
	if err != nil || resp.Username != who || fmt.Sprint(trailer["who"]) != "["+who+"]" {
		return fmt.Errorf("unary: %v %v %w", resp.GetUsername(), trailer, err)
	}
	_, err = c.UnaryCall(ctx,
		&pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: 5, Message: "no süch thing"}})
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != who+" no süch thing" {
		return fmt.Errorf("unary that fails: %w", err)
	}
	out, err := c.StreamingOutputCall(ctx,
		&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 5},
			{Size: 100_000}, {Size: 0}}})
	if err != nil {
		return err
	}
	for _, n := range []int{5, 100_000, 0} {
		m, err := out.Recv()
		if err != nil || len(m.Payload.Body) != n+len(who)+1 ||
			!strings.HasPrefix(string(m.Payload.Body), who+" ") {
			return fmt.Errorf("server stream: %d %w", len(m.GetPayload().GetBody()), err)
		}
	}
	if _, err := out.Recv(); err != io.EOF || fmt.Sprint(out.Trailer()["who"]) != "["+who+"]" {
		return fmt.Errorf("server stream ends: %v %w", out.Trailer(), err)
	}
	in, err := c.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 200_000, 0} {
		if err := in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte,
			n)}}); err != nil {
			return fmt.Errorf("client stream: %w", err)
		}
	}
	sum, err := in.CloseAndRecv()
	if err != nil || sum.AggregatedPayloadSize != 200_001 || fmt.Sprint(in.Trailer()["who"]) != "["+who+"]" {
		return fmt.Errorf("client stream ends: %v %v %w", sum, in.Trailer(), err)
	}
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int32{1, 50_000, 0} {
		err := both.Send(&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: n}}, Payload: &pb.Payload{Body: make([]byte, n)}})
		if err != nil {
			return err
		}
		m, err := both.Recv()
		if err != nil || len(m.Payload.Body) != int(n)+len(who)+1 {
			return fmt.Errorf("ping-pong: %w", err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); err != io.EOF || fmt.Sprint(both.Trailer()["blob-bin"]) != "[\x00\xff]" {
		return fmt.Errorf("ping-pong ends: %q %w", both.Trailer(), err)
	}
	return nil
}

func TestGRPCIsRoutedByStream(t *testing.T) {
	_, _, app := grpcServer(t, "app")
	_, _, local := grpcServer(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := grpcClient(t, w.addr)
	for range 3 {
		for _, me := range []bool{false, true} {
			ctx, who := as(t, me)
			require.NoError(t, callAll(ctx, c, who), who)
		}
	}
	assert.Equal(t, 1, w.appDials(), "over one connection")
	assert.Equal(t, 1, w.laptop.opened(), "and one tunnel")
	assert.Equal(t, InterceptStats{Matched: 15, Answered: 15}, w.target.Stats().Intercepts["uid-1"])
}

func TestStreamsOfAppAndLaptopShareAConnection(t *testing.T) {
	_, _, app := grpcServer(t, "app")
	_, _, local := grpcServer(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := grpcClient(t, w.addr)
	var wg sync.WaitGroup
	errs := make(chan error, 32)
	for i := range 32 {
		wg.Go(func() {
			ctx, who := as(t, i%2 == 0)
			for range 5 {
				if err := callAll(ctx, c, who); err != nil {
					errs <- fmt.Errorf("%s: %w", who, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	assert.Equal(t, 1, w.appDials())
}

func TestDeadlinesAndCancellationsReachWhoServes(t *testing.T) {
	appG, _, app := grpcServer(t, "app")
	laptopG, _, local := grpcServer(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := grpcClient(t, w.addr)
	for _, g := range []*greeter{appG, laptopG} {
		ctx, _ := as(t, g == laptopG)
		ctx, cancel := context.WithCancel(ctx)
		both, err := c.FullDuplexCall(ctx)
		require.NoError(t, err)
		require.NoError(t, both.Send(
			&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 1}}}))
		_, err = both.Recv()
		require.NoError(t, err)
		cancel()
		_, err = both.Recv()
		assert.Equal(t, codes.Canceled, status.Code(err))
		assert.Eventually(t, func() bool { return g.givenUp() == 1 }, 30*time.Second, time.Millisecond, g.name)

		ctx, _ = as(t, g == laptopG)
		ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
		in, err := c.StreamingInputCall(ctx)
		require.NoError(t, err)
		require.NoError(t, in.Send(&pb.StreamingInputCallRequest{}))
		_, err = in.CloseAndRecv()
		cancel()
		if err != nil {
			assert.Equal(t, codes.DeadlineExceeded, status.Code(err))
		}
		ctx, who := as(t, g == laptopG)
		assert.NoError(t, callAll(ctx, c, who))
	}
}

func TestGRPCGoesToTheAppWhenTheLaptopCannotTakeIt(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed.Close()
	for name, spoil := range map[string]func(*world){
		"there is no manager": func(
			w *world) {
			w.laptop.set(func(l *laptop) { l.gone = true })
		},
		"nothing listens there": func(
			w *world) {
			w.laptop.set(func(l *laptop) { l.local = closed.Addr().String() })
		},
		"the local process speaks HTTP/1": func(
			w *world) {
			w.laptop.set(func(l *laptop) { l.local = says(t, "laptop") })
		},
		"the local process accepts and is mute": func(
			w *world) {
			w.laptop.set(func(l *laptop) { l.local = muteServer(t) })
		},
		"the laptop never answers": func(
			w *world) {
			w.laptop.set(func(l *laptop) { l.delay = t.Context().Done() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, app := grpcServer(t, "app")
			w := newWorldWith(t, app, "", impatient)
			spoil(w)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := grpcClient(t, w.addr)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					ctx, _ := as(t, true)
					for range 3 {
						resp, err := c.UnaryCall(ctx,
							&pb.SimpleRequest{Payload: &pb.Payload{Body: make([]byte, 5000)}})
						assert.NoError(t, err)
						assert.Equal(t, "app", resp.GetUsername())
					}
				})
				wg.Go(func() {
					ctx, _ := as(t, false)
					for range 3 {
						assert.NoError(t, callAll(ctx, c, "app"))
					}
				})
			}
			wg.Wait()
			assert.Equal(t, uint64(24), w.target.Stats().Intercepts["uid-1"].Fallbacks)
			assert.Equal(t, 1, w.appDials())
		})
	}
}

// muteServer accepts connections and says nothing.
func muteServer(t testing.TB) string {
	return serveOn(t, func(ctx context.Context, c *net.TCPConn) {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		io.Copy(io.Discard, c)
		c.Close()
	})
}

func TestRulesAreObeyedByTheNextStreams(t *testing.T) {
	_, _, app := grpcServer(t, "app")
	_, _, local := grpcServer(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := grpcClient(t, w.addr)
	ctx, who := as(t, true)
	both, err := c.FullDuplexCall(ctx)
	require.NoError(t, err)
	pingPong := func(want string) {
		require.NoError(t, both.Send(
			&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{}}}))
		m, err := both.Recv()
		require.NoError(t, err)
		assert.Equal(t, want+" ", string(m.Payload.Body))
	}
	pingPong("laptop")
	w.target.SetRules(nil, Kubelet{})
	pingPong("laptop")
	require.NoError(t, callAll(ctx, c, "app"))
	pingPong("laptop")
	require.NoError(t, both.CloseSend())
	_, err = both.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool {
		return gathered(t,
			w.metrics)["sidestep_proxy_open_tunnels"] == 0
	}, 30*time.Second, time.Millisecond,
		"the tunnel goes with its last stream")
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	require.NoError(t, callAll(ctx, c, who))
}

func TestALaptopThatDiesUnderStreams(t *testing.T) {
	_, _, app := grpcServer(t, "app")
	_, _, local := grpcServer(t, "laptop")
	w := newWorld(t, app, local)
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := grpcClient(t, w.addr)
	theirs, _ := as(t, false)
	other, err := c.FullDuplexCall(theirs)
	require.NoError(t, err)
	mineCtx, _ := as(t, true)
	both, err := c.FullDuplexCall(mineCtx)
	require.NoError(t, err)
	require.NoError(t, both.Send(
		&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{}}}))
	_, err = both.Recv()
	require.NoError(t, err)
	w.laptop.kill()
	_, err = both.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	require.NoError(t, other.Send(
		&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{}}}))
	m, err := other.Recv()
	require.NoError(t, err)
	assert.Equal(t, "app ", string(m.Payload.Body))
	require.NoError(t, callAll(mineCtx, c, "laptop"), "over another tunnel")
	require.NoError(t, callAll(theirs, c, "app"))
}

func TestServersThatEndTheirConnections(t *testing.T) {
	aged := grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 60 * time.Millisecond,
		MaxConnectionAgeGrace: 10 * time.Second})
	for name, options := range map[string][2][]grpc.ServerOption{
		"the app":    {{aged}, nil},
		"the laptop": {nil, {aged}},
		"both":       {{aged}, {aged}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, app := grpcServer(t, "app", options[0]...)
			_, _, local := grpcServer(t, "laptop", options[1]...)
			w := newWorld(t, app, local)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			c := grpcClient(t, w.addr)
			end := time.Now().Add(500 * time.Millisecond)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for time.Now().Before(end) {
						ctx, who := as(t, i%2 == 0)
						if !assert.NoError(t, callAll(ctx, c, who), who) {
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
