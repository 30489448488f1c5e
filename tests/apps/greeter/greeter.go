// SPDX-License-Identifier: Apache-2.0

// Package greeter is a gRPC service with the calls of gRPC's own interoperability tests: unary,
// streaming in either direction and both. It adds who answered to each of them.
package greeter

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Metadata of every answer's header.
const (
	ServiceKey = "x-service"
	PodKey     = "x-pod"
)

// Metadata that the interoperability tests ask to have back, in the header and in the trailer.
const (
	echoInitial  = "x-grpc-test-echo-initial"
	echoTrailing = "x-grpc-test-echo-trailing-bin"
)

const largestPayload = 64 << 20

type server struct {
	testpb.UnimplementedTestServiceServer
	name, pod string
}

// New returns a server with the test service and the health service.
func New(name, pod string) *grpc.Server {
	s := &server{name: name, pod: pod}
	grpcServer := grpc.NewServer(
		grpc.MaxRecvMsgSize(largestPayload),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo,
			handler grpc.UnaryHandler) (any, error) {
			header, trailer := s.mark(ctx)
			if err := errors.Join(grpc.SetHeader(ctx, header), grpc.SetTrailer(ctx, trailer)); err != nil {
				return nil, err
			}
			return handler(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo,
			handler grpc.StreamHandler) error {
			header, trailer := s.mark(stream.Context())
			stream.SetTrailer(trailer)
			if err := stream.SetHeader(header); err != nil {
				return err
			}
			return handler(srv, stream)
		}),
	)
	testpb.RegisterTestServiceServer(grpcServer, s)
	healthpb.RegisterHealthServer(grpcServer, health.NewServer())
	return grpcServer
}

// Serve answers on the listener until the context ends, and then gives open calls two seconds.
func Serve(ctx context.Context, grpcServer *grpc.Server, listener net.Listener) error {
	defer context.AfterFunc(ctx, func() {
		force := time.AfterFunc(2*time.Second, grpcServer.Stop)
		defer force.Stop()
		grpcServer.GracefulStop()
	})()
	return grpcServer.Serve(listener)
}

// mark returns the metadata of an answer: who it is from, and what the client wants back.
func (s *server) mark(ctx context.Context) (header, trailer metadata.MD) {
	received, _ := metadata.FromIncomingContext(ctx)
	header = metadata.Pairs(ServiceKey, s.name, PodKey, s.pod)
	if values := received.Get(echoInitial); len(values) > 0 {
		header.Set(echoInitial, values...)
	}
	trailer = metadata.MD{}
	if values := received.Get(echoTrailing); len(values) > 0 {
		trailer.Set(echoTrailing, values...)
	}
	return header, trailer
}

func (s *server) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func (s *server) UnaryCall(_ context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if err := asked(in.GetResponseStatus()); err != nil {
		return nil, err
	}
	payload, err := payload(in.GetResponseType(), in.GetResponseSize())
	if err != nil {
		return nil, err
	}
	return &testpb.SimpleResponse{Payload: payload, ServerId: s.name, Hostname: s.pod}, nil
}

func (s *server) StreamingOutputCall(in *testpb.StreamingOutputCallRequest,
	stream testpb.TestService_StreamingOutputCallServer) error {
	if err := asked(in.GetResponseStatus()); err != nil {
		return err
	}
	return send(stream, in)
}

func (s *server) StreamingInputCall(stream testpb.TestService_StreamingInputCallServer) error {
	sum := 0
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(in.GetPayload().GetBody())
	}
}

func (s *server) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := asked(in.GetResponseStatus()); err != nil {
			return err
		}
		if err := send(stream, in); err != nil {
			return err
		}
	}
}

func (s *server) HalfDuplexCall(stream testpb.TestService_HalfDuplexCallServer) error {
	var all []*testpb.StreamingOutputCallRequest
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		all = append(all, in)
	}
	for _, in := range all {
		if err := send(stream, in); err != nil {
			return err
		}
	}
	return nil
}

type sender interface {
	Send(*testpb.StreamingOutputCallResponse) error
	Context() context.Context
}

func send(stream sender, in *testpb.StreamingOutputCallRequest) error {
	for _, parameters := range in.GetResponseParameters() {
		select {
		case <-time.After(time.Duration(parameters.GetIntervalUs()) * time.Microsecond):
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
		payload, err := payload(in.GetResponseType(), parameters.GetSize())
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: payload}); err != nil {
			return err
		}
	}
	return nil
}

func asked(want *testpb.EchoStatus) error {
	if want.GetCode() == 0 {
		return nil
	}
	return status.Error(codes.Code(want.GetCode()), want.GetMessage())
}

func payload(kind testpb.PayloadType, size int32) (*testpb.Payload, error) {
	if size < 0 || size > largestPayload {
		return nil, status.Errorf(codes.InvalidArgument, "a payload of %d bytes was asked for", size)
	}
	return &testpb.Payload{Type: kind, Body: make([]byte, size)}, nil
}
