// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"sidestep.dev/sidestep/tests/lab"
)

// Names of ways to and from a laptop.
const (
	bareGRPC    = "two gRPC streams, nothing else"
	byTunnel    = "intercepted, answered by the laptop"
	portForward = "kubectl port-forward to the pod"
	rawTCP      = "TCP over the same link"
)

// Ports for these rows.
const (
	laptopPort  = 19000 // of the laptop: the service in the app's place
	forwardPort = 18080 // of the laptop
	relayPort   = 18070 // of the second node
	bulkPort    = 18060 // of the laptop, the control plane and the measured pod
)

// matchedRows are requests that a laptop answers.
func (b *bench) matchedRows() (rows []row) {
	for _, connections := range []int{1, 32} {
		rows = append(rows, row{
			name: fmt.Sprintf("matched HTTP/1.1, connections: %d", connections), unit: "requests/s",
			per: "request",
			ways: []way{
				{name: bareGRPC},
				{name: byTunnel, address: fmt.Sprintf("%s:%d", b.plain.IP, goPort), intercept: unmatched("go")},
				{name: portForward, address: fmt.Sprintf("127.0.0.1:%d", forwardPort), from: "laptop"},
			},
			prepare: func(ctx context.Context) (func(), error) { return all(ctx, b.forward(goPort), b.relay) },
			measure: func(ctx context.Context, w way) (sample, error) {
				switch w.name {
				case bareGRPC:
					return b.grpcLoad(ctx, fmt.Sprintf("stream=%d", connections),
						fmt.Sprintf("%s:%d", b.nodes["node2"], relayPort))
				case byTunnel:
					return b.wrk(ctx, w, connections, "-H", "x-user: ann")
				}
				return b.wrk(ctx, w, connections)
			},
		})
	}
	return rows
}

// all prepares several things, and undoes them in reverse order.
func all(ctx context.Context, prepare ...func(context.Context) (func(), error)) (undo func(), err error) {
	var undos []func()
	undo = func() {
		for i := range undos {
			undos[len(undos)-1-i]()
		}
	}
	for _, p := range prepare {
		u, err := p(ctx)
		if err != nil {
			undo()
			return nil, err
		}
		undos = append(undos, u)
	}
	return undo, nil
}

// forward keeps a kubectl port-forward from the laptop to a port of the measured pod.
func (b *bench) forward(port int) func(context.Context) (stop func(), err error) {
	return func(ctx context.Context) (stop func(), err error) {
		return b.serve(ctx, "laptop", forwardPort, func(ctx context.Context) *exec.Cmd {
			return b.admin.Kubectl(ctx, "-n", lab.Namespace, "port-forward", "pod/"+b.plain.Name,
				fmt.Sprintf("%d:%d", forwardPort, port))
		})
	}
}

// relay keeps a process that passes gRPC streams on, as the manager does, from the second node to
// the greeter on the first.
func (b *bench) relay(ctx context.Context) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return b.serve(ctx, "node2", relayPort, func(ctx context.Context) *exec.Cmd {
		return b.OnNode(ctx, "node2", self, "-grpc-relay",
			fmt.Sprintf("%d,%s:%d", relayPort, b.plain.IP, grpcPort))
	})
}

// serve starts a server on a machine and waits until it listens.
func (b *bench) serve(ctx context.Context, machine string, port int,
	command func(context.Context) *exec.Cmd) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := command(ctx)
	// it is forwarded to a program on a node, unlike an interrupt
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	stop = func() {
		cancel()
		_ = cmd.Wait()
	}
	err = lab.Eventually(ctx, 10*time.Second, func(ctx context.Context) error {
		out, err := lab.Output(b.OnNode(ctx, machine, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port)))
		if err == nil && out == "" {
			err = fmt.Errorf("%s does not listen on port %d of %s", cmd.Args[0], port, machine)
		}
		return err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("%w: %s", err, said.String())
	}
	return stop, nil
}

// relayServer passes each stream on, message by message.
type relayServer struct {
	testpb.UnimplementedTestServiceServer
	to testpb.TestServiceClient
}

// runGRPCRelay is the process on the second node.
func runGRPCRelay(ctx context.Context, what string) error {
	port, to, found := strings.Cut(what, ",")
	if !found {
		return fmt.Errorf("-grpc-relay %q: not PORT,ADDRESS", what)
	}
	conn, err := grpc.NewClient(to, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, relayServer{to: testpb.NewTestServiceClient(conn)})
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(listener)
}

func (r relayServer) FullDuplexCall(client testpb.TestService_FullDuplexCallServer) error {
	server, err := r.to.FullDuplexCall(client.Context())
	if err != nil {
		return err
	}
	go func() {
		for {
			request, err := client.Recv()
			if err != nil {
				_ = server.CloseSend()
				return
			}
			if server.Send(request) != nil {
				return
			}
		}
	}()
	for {
		response, err := server.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := client.Send(response); err != nil {
			return err
		}
	}
}
