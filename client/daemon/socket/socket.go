// Package socket is how the command line reaches the daemon.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"sidestep.dev/sidestep/api/daemonpb"
)

// ErrNotRunning is returned by Dial when no daemon serves the socket.
var ErrNotRunning = errors.New("the daemon is not running")

// Dial connects to the daemon that serves the socket and returns once it has accepted. The error is ErrNotRunning when there is none.
func Dial(ctx context.Context, path string) (daemonpb.DaemonClient, io.Closer, error) {
	first, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, nil, fmt.Errorf("%w (%s)", ErrNotRunning, path)
		}
		return nil, nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	firsts := make(chan net.Conn, 1)
	firsts <- first
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case conn := <-firsts:
			return conn, nil
		default:
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	conn, err := grpc.NewClient("passthrough:///daemon",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		_ = first.Close()
		return nil, nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	conn.Connect()
	return daemonpb.NewDaemonClient(conn), conn, nil
}
