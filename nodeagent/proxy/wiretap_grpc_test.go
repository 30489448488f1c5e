// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// calls notes what a gRPC server gets: the calls with the bytes of their messages.
type calls struct {
	mu       sync.Mutex
	ended    map[string]int // by method, who called and the bytes received
	messages int
}

type callKey struct{}

type call struct {
	name  string
	bytes int
}

func (c *calls) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	return context.WithValue(ctx, callKey{},
		&call{name: fmt.Sprint(info.FullMethodName, md["x-dev"], md["te"], md["odd-bin"])})
}

func (c *calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	its := ctx.Value(callKey{}).(*call)
	switch s := s.(type) {
	case *stats.InPayload:
		its.bytes += s.Length
		c.messages++
	case *stats.End:
		if c.ended == nil {
			c.ended = map[string]int{}
		}
		c.ended[fmt.Sprintf("%s %d", its.name, its.bytes)]++
	}
}

func (c *calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c *calls) HandleConn(context.Context, stats.ConnStats)                       {}

func (c *calls) received() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.messages
}

func (c *calls) seen() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[string]int{}
	maps.Copy(seen, c.ended)
	return seen
}

func TestAWiretapOfGRPC(t *testing.T) {
	t.Run("gets every call, and the app answers", func(t *testing.T) {
		atApp, atLaptop := &calls{}, &calls{}
		_, _, app := grpcServer(t, "app", grpc.StatsHandler(atApp))
		_, _, local := grpcServer(t, "laptop", grpc.StatsHandler(atLaptop))
		w := patient(t, app, local)
		w.target.SetRules([]Rule{tapRule()}, Kubelet{})
		var clients sync.WaitGroup
		for range 3 {
			c := grpcClient(t, w.addr)
			for range 3 {
				clients.Go(func() {
					ctx, _ := as(t, true)
					assert.NoError(t, callAll(metadata.AppendToOutgoingContext(ctx, "odd-bin",
						"\x00\xff"), c, "app"))
				})
			}
		}
		clients.Wait()
		require.Eventually(t, func() bool {
			return assert.ObjectsAreEqual(atApp.seen(),
				atLaptop.seen())
		}, 20*time.Second, 5*time.Millisecond,
			"%v\n%v", atApp, atLaptop)
		assert.Equal(t, tap.Counts{Copied: 45}, w.copies())
		w.settled()
	})
	t.Run("gets what passes beside an intercept, and what that could not take", func(t *testing.T) {
		atLaptop := &calls{}
		_, _, app := grpcServer(t, "app")
		_, _, local := grpcServer(t, "laptop", grpc.StatsHandler(atLaptop))
		w := patient(t, app, local)
		w.target.SetRules([]Rule{headerRule(t), tapRule()}, Kubelet{})
		c := grpcClient(t, w.addr)
		for _, me := range []bool{true, false, true, false} {
			ctx, who := as(t, me)
			require.NoError(t, callAll(ctx, c, who))
		}
		w.settled()
		assert.EqualValues(t, 10, w.copies().Copied, "of those of the others alone")
		w.target.SetRules([]Rule{tapRule()}, Kubelet{})
		ctx, _ := as(t, true)
		require.NoError(t, callAll(ctx, c, "app"))
		w.settled()
		assert.EqualValues(t, 15, w.copies().Copied)
		ctx, _ = as(t, false)
		require.NoError(t, callAll(ctx, c, "app"))
	})
	t.Run("is cut where the client gives up", func(t *testing.T) {
		atApp, _, app := grpcServer(t, "app")
		arrived := &calls{}
		atLaptop, _, local := grpcServer(t, "laptop", grpc.StatsHandler(arrived))
		w := patient(t, app, local)
		w.target.SetRules([]Rule{tapRule()}, Kubelet{})
		ctx, _ := as(t, false)
		ctx, cancel := context.WithCancel(ctx)
		s, err := grpcClient(t, w.addr).FullDuplexCall(ctx)
		require.NoError(t, err)
		require.NoError(t, s.Send(
			&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 1}}}))
		_, err = s.Recv()
		require.NoError(t, err)
		require.Eventually(t, func() bool { return arrived.received() == 1 }, 30*time.Second, time.Millisecond)
		cancel()
		_, err = s.Recv()
		assert.Error(t, err)
		require.Eventually(t, func() bool { return atApp.givenUp() == 1 && atLaptop.givenUp() == 1 },
			30*time.Second, time.Millisecond)
		assert.Equal(t, tap.Counts{Copied: 1, Cut: 1}, w.copies())
	})
	t.Run("changes nothing when the laptop speaks no HTTP/2, or hangs", func(t *testing.T) {
		_, _, app := grpcServer(t, "app")
		for _, local := range []string{says(t, "laptop"), "127.0.0.1:1",
			rawServer(t, func(*net.TCPConn, *bufio.Reader) { <-t.Context().Done() })} {
			w := patient(t, app, local)
			w.target.SetRules([]Rule{tapRule()}, Kubelet{})
			c := grpcClient(t, w.addr)
			for range 5 {
				ctx, _ := as(t, false)
				require.NoError(t, callAll(ctx, c, "app"))
			}
			w.target.SetRules(nil, Kubelet{})
			w.settled()
		}
	})
}

func TestBodiesOfHTTP2AreCopiedWhole(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	server := func(name string) string {
		return h2cServer(t, func(rw http.ResponseWriter, r *http.Request) {
			p, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			mu.Lock()
			got[fmt.Sprintf("%s %s %s %x %s", r.Method, r.Host, r.RequestURI, bytes.Count(p, []byte{7}),
				r.Trailer.Get("Sum"))] += len(p) + len(name)
			mu.Unlock()
			rw.Write(p)
		})
	}
	w := patient(t, server("app"), server("lap"))
	w.target.SetRules([]Rule{tapRule()}, Kubelet{})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: transport}
	defer client.CloseIdleConnections()
	for _, size := range []int{0, 1, 70_000, 2_000_000} {
		body := bytes.Repeat([]byte{7}, size)
		req, err := http.NewRequest("POST", "http://"+w.addr+fmt.Sprint("/", size),
			io.MultiReader(bytes.NewReader(body)))
		require.NoError(t, err)
		req.Trailer = http.Header{"Sum": {fmt.Sprint("trailer ", size)}}
		resp, err := client.Do(req)
		require.NoError(t, err)
		back, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		assert.True(t, bytes.Equal(body, back))
	}
	w.settled()
	mu.Lock()
	defer mu.Unlock()
	for _, size := range []int{0, 1, 70_000, 2_000_000} {
		assert.Equal(t, 2*size+6,
			got[fmt.Sprintf("POST %s /%d %x trailer %d", w.addr, size, size, size)], "%v", got)
	}
	assert.Equal(t, tap.Counts{Copied: 4}, w.copies())
}
