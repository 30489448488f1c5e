// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
)

// Flow-control windows in bytes. A stream's window bounds the speed of one connection (4 MiB over
// 80 ms of round trip are 50 MB/s) and what a reader that has stopped can make its peer buffer.
const (
	streamWindow     = 4 << 20
	connectionWindow = 32 << 20
	maxMessage       = 1 << 20 // no frame comes near; more is a hostile or broken peer
	transportBuffer  = 64 << 10
	// maxHeader bounds the metadata of a call: a service-account token takes about 1 KiB.
	maxHeader = 16 << 10
	// maxStreams bounds the calls on one connection, each of which carries a tunnel. A node agent has
	// one connection, and gives to the app what it has no tunnel for.
	maxStreams = 8192
)

var _ encoding.CodecV2 = Codec{}

// ServerOptions make a gRPC server that carries tunnels.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{}),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(transportBuffer),
		grpc.WriteBufferSize(transportBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second,
			PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
	}
}

// DialOptions make a gRPC client that carries tunnels. It notices within fifteen seconds that the
// other side is gone, since grpc-go does not let clients ping more often than every ten; while data
// is on its way, within five, through TCP_USER_TIMEOUT.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(Codec{}), grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithReadBufferSize(transportBuffer),
		grpc.WithWriteBufferSize(transportBuffer),
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Second,
			Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}
}
