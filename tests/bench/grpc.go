// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"sidestep.dev/sidestep/tests/lab"
)

// grpcLoad has a process on the node call the greeter. kind is unary=N or stream=N, N being how
// many calls or streams there are at a time, on one connection.
func (b *bench) grpcLoad(ctx context.Context, kind, address string) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	out, err := lab.Output(b.OnNode(ctx, node, self, "-grpc-load", kind+","+address+","+b.duration.String()))
	if err != nil {
		return sample{}, err
	}
	var r latencies
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return sample{}, fmt.Errorf("read %q: %w", out, err)
	}
	return r.sample(), nil
}

// latencies are those of a load that this program makes itself, in µs.
type latencies struct {
	Seconds float64
	Micros  []float64
}

func (l latencies) sample() sample {
	if len(l.Micros) == 0 {
		return sample{}
	}
	n := float64(len(l.Micros))
	return sample{rate: n / l.Seconds, done: n, p50: quantile(l.Micros, .5), p99: quantile(l.Micros, .99)}
}

// payload is as large as the answers of the other rows.
var payload = &testpb.Payload{Body: make([]byte, 256)}

// runGRPCLoad is the process on the node.
func runGRPCLoad(ctx context.Context, what string, out io.Writer) error {
	fields := strings.Split(what, ",")
	if len(fields) != 3 {
		return fmt.Errorf("-grpc-load %q: not KIND=N,ADDRESS,DURATION", what)
	}
	kind, count, _ := strings.Cut(fields[0], "=")
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	duration, err := time.ParseDuration(fields[2])
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(fields[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := testpb.NewTestServiceClient(conn)
	call := unary
	if kind == "stream" {
		call = backAndForth
	}
	result, err := repeat(ctx, n, duration,
		func(ctx context.Context) (func() error, error) { return call(ctx, client) })
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

func unary(ctx context.Context, client testpb.TestServiceClient) (func() error, error) {
	return func() error {
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 256, Payload: payload})
		return err
	}, nil
}

func backAndForth(ctx context.Context, client testpb.TestServiceClient) (func() error, error) {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return nil, err
	}
	request := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 256}}, Payload: payload}
	return func() error {
		if err := stream.Send(request); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}, nil
}

// repeat runs, in n goroutines, what start returns, over and over, and measures how long each run
// takes.
func repeat(ctx context.Context, n int, duration time.Duration,
	start func(context.Context) (func() error, error)) (latencies, error) {
	var mu sync.Mutex
	var all latencies
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for range n {
		wg.Go(func() {
			var mine []float64
			do, err := start(ctx)
			for err == nil && time.Since(began) < duration {
				before := time.Now()
				err = do()
				mine = append(mine, float64(time.Since(before).Nanoseconds())/1000)
			}
			mu.Lock()
			defer mu.Unlock()
			all.Micros = append(all.Micros, mine...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	all.Seconds = time.Since(began).Seconds()
	return all, failed
}
