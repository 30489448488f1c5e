// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// callerVariable makes this binary the client: "address case header". The cases end the process
// when they fail.
const callerVariable = "SIDESTEP_INTEROP"

// cases are the cases of grpc-go's interop client that need no cloud credentials.
var cases = map[string]func(ctx context.Context, cc *grpc.ClientConn){
	"empty_unary":                 call(interop.DoEmptyUnaryCall),
	"large_unary":                 call(interop.DoLargeUnaryCall),
	"client_streaming":            call(interop.DoClientStreaming),
	"server_streaming":            call(interop.DoServerStreaming),
	"ping_pong":                   call(interop.DoPingPong),
	"empty_stream":                call(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  call(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          call(interop.DoCancelAfterBegin),
	"cancel_after_first_response": call(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     call(interop.DoStatusCodeAndMessage),
	"special_status_message":      call(interop.DoSpecialStatusMessage),
	"custom_metadata":             call(interop.DoCustomMetadata),
	"unimplemented_method": func(ctx context.Context,
		cc *grpc.ClientConn) {
		interop.DoUnimplementedMethod(ctx, cc)
	},
	"unimplemented_service": func(ctx context.Context, cc *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, pb.NewUnimplementedServiceClient(cc))
	},
}

func call(f func(context.Context, pb.TestServiceClient, ...grpc.CallOption)) func(context.Context,
	*grpc.ClientConn) {
	return func(ctx context.Context, cc *grpc.ClientConn) { f(ctx, pb.NewTestServiceClient(cc)) }
}

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(callerVariable)); len(args) > 0 {
		caller(args[0], args[1], args[2])
		return
	}
	os.Exit(m.Run())
}

// caller runs cases, all at once over one connection. In "mixed" every second one carries the
// header.
func caller(addr, name, header string) {
	var wg sync.WaitGroup
	add := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "x-dev", ctx.Value(key{}).(string))
	}
	cc, err := grpc.NewClient("passthrough:"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any,
			cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return invoke(add(ctx), method, req, reply, cc, o...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn,
			method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(add(ctx), desc, cc, method, o...)
		}))
	if err != nil {
		panic(err)
	}
	defer cc.Close()
	run := func(name, header string) {
		ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, header), time.Minute)
		defer cancel()
		cases[name](ctx, cc)
	}
	if name != "all" {
		run(name, header)
		return
	}
	for i := range 4 {
		for name := range cases {
			wg.Go(func() { run(name, []string{"me", "you"}[i%2]) })
		}
	}
	wg.Wait()
}

type key struct{}

// verdict runs a case in a process of its own.
func verdict(t *testing.T, addr, name, header string) string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), callerVariable+"="+addr+" "+name+" "+header)
	if out, err := cmd.CombinedOutput(); err != nil {
		return err.Error() + ": " + string(out)
	}
	return "passed"
}

func interopServer(t *testing.T) string {
	l := listen(t)
	s := grpc.NewServer()
	pb.RegisterTestServiceServer(s, interop.NewTestServer())
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func TestGRPCInterop(t *testing.T) {
	app := interopServer(t)
	w, addr := newWorld(t, app, interopServer(t))
	var names []string
	for name := range cases {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		direct := verdict(t, app, name, "you")
		assert.Equal(t, "passed", direct, name)
		assert.Equal(t, direct, verdict(t, addr, name, "you"), "%s, not claimed", name)
		assert.Equal(t, direct, verdict(t, addr, name, "me"), "%s, claimed", name)
	}
	assert.Equal(t, "passed", verdict(t, addr, "all", "mixed"))
	stats := w.target.Stats().Intercepts["uid"]
	assert.NotZero(t, stats.Matched)
	assert.Zero(t, stats.Fallbacks)
}
