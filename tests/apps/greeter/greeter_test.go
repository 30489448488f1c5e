// SPDX-License-Identifier: Apache-2.0

package greeter

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func start(t *testing.T) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, New("greeter", "greeter-0"), listener) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		conn.Close()
		stop()
		assert.NoError(t, <-done)
	})
	return conn
}

func TestAUnaryCallSaysWhoAnswered(t *testing.T) {
	client := testpb.NewTestServiceClient(start(t))
	ctx := metadata.AppendToOutgoingContext(t.Context(), echoInitial, "back", echoTrailing, "\x00\x01")
	var header, trailer metadata.MD
	answer, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 5}, grpc.Header(&header),
		grpc.Trailer(&trailer))
	require.NoError(t, err)
	assert.Len(t, answer.GetPayload().GetBody(), 5)
	assert.Equal(t, "greeter", answer.GetServerId())
	assert.Equal(t, []string{"greeter"}, header.Get(ServiceKey))
	assert.Equal(t, []string{"greeter-0"}, header.Get(PodKey))
	assert.Equal(t, []string{"back"}, header.Get(echoInitial))
	assert.Equal(t, []string{"\x00\x01"}, trailer.Get(echoTrailing))
}

func TestAStatusThatIsAskedForComesBack(t *testing.T) {
	client := testpb.NewTestServiceClient(start(t))
	_, err := client.UnaryCall(t.Context(),
		&testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 5, Message: "none"}})
	assert.Equal(t, codes.NotFound, status.Code(err))
	_, err = client.UnaryCall(t.Context(), &testpb.SimpleRequest{ResponseSize: -1})
	assert.Equal(t, codes.InvalidArgument, status.Code(err))
}

func TestStreamsGoBothWays(t *testing.T) {
	client := testpb.NewTestServiceClient(start(t))
	stream, err := client.FullDuplexCall(t.Context())
	require.NoError(t, err)
	for _, size := range []int32{1, 100_000, 0} {
		require.NoError(t, stream.Send(
			&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: size}}}))
		answer, err := stream.Recv()
		require.NoError(t, err)
		assert.Len(t, answer.GetPayload().GetBody(), int(size))
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)

	up, err := client.StreamingInputCall(t.Context())
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, up.Send(
			&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 7)}}))
	}
	sum, err := up.CloseAndRecv()
	require.NoError(t, err)
	assert.EqualValues(t, 21, sum.GetAggregatedPayloadSize())

	down, err := client.StreamingOutputCall(t.Context(), &testpb.StreamingOutputCallRequest{
		ResponseParameters: []*testpb.ResponseParameters{{Size: 3}, {Size: 4, IntervalUs: 10}},
	})
	require.NoError(t, err)
	for _, size := range []int{3, 4} {
		answer, err := down.Recv()
		require.NoError(t, err)
		assert.Len(t, answer.GetPayload().GetBody(), size)
	}
}

func TestTheServiceIsHealthy(t *testing.T) {
	answer, err := healthpb.NewHealthClient(start(t)).Check(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	assert.Equal(t, healthpb.HealthCheckResponse_SERVING, answer.GetStatus())
}
