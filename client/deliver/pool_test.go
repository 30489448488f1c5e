// SPDX-License-Identifier: Apache-2.0

package deliver_test

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/client/deliver"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/internal/tunnel"
)

// registry is a manager that keeps the streams in the order in which they were parked, as the real
// one does.
type registry struct {
	clientpb.UnimplementedClientsServer
	most int // 0: any number

	mu     sync.Mutex
	parked []clientpb.Clients_AcceptServer
	silent map[string]bool // connections that park nothing
}

func (r *registry) Accept(stream clientpb.Clients_AcceptServer) error {
	r.mu.Lock()
	if r.most > 0 && len(r.living()) >= r.most {
		r.mu.Unlock()
		return status.Error(codes.ResourceExhausted, "enough streams are waiting")
	}
	if r.silent[from(stream)] {
		r.mu.Unlock()
		return status.Error(codes.Unavailable, "not over this one")
	}
	r.parked = append(r.parked, stream)
	r.mu.Unlock()
	<-stream.Context().Done()
	return nil
}

// from returns the connection over which a stream came.
func from(stream clientpb.Clients_AcceptServer) string {
	p, _ := peer.FromContext(stream.Context())
	return p.Addr.String()
}

// living is called with mu held.
func (r *registry) living() (living []clientpb.Clients_AcceptServer) {
	for _, stream := range r.parked {
		if stream.Context().Err() == nil {
			living = append(living, stream)
		}
	}
	return living
}

// waiting counts the parked streams of each connection.
func (r *registry) waiting() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[string]int{}
	for _, stream := range r.living() {
		n[from(stream)]++
	}
	return n
}

// all counts the parked streams.
func (r *registry) all() (n int) {
	for _, waiting := range r.waiting() {
		n += waiting
	}
	return n
}

// flow is a tunnel, and the connection that it goes over.
type flow struct {
	*tunnel.Conn
	over string
}

func (r *registry) open(t *testing.T) flow {
	var stream clientpb.Clients_AcceptServer
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.parked = r.living()
		if len(r.parked) == 0 {
			return false
		}
		stream, r.parked = r.parked[0], r.parked[1:]
		return true
	}, patience, time.Millisecond, "a stream is parked")
	c, err := tunnel.Open(stream, &tunnelpb.Open{InterceptUid: "uid"})
	require.NoError(t, err)
	opened, err := c.Opened(t.Context())
	require.NoError(t, err)
	require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
	return flow{c, from(stream)}
}

// echoes reports whether the local process answers.
func (f flow) echoes() bool {
	_ = f.SetDeadline(time.Now().Add(patience))
	if _, err := f.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(f, make([]byte, 1))
	return err == nil
}

// laptop is a Pool whose connections a test makes and ends.
type laptop struct {
	*testing.T
	manager *registry
	addr    string
	ctx     context.Context
	further chan link.Line
	wants   chan uint32
}

func newLaptop(t *testing.T, manager *registry, gather time.Duration) *laptop {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	clientpb.RegisterClientsServer(server, manager)
	go func() { _ = server.Serve(listener) }()
	ctx, cancel := context.WithCancel(context.Background())
	l := &laptop{T: t, manager: manager, addr: listener.Addr().String(), ctx: ctx,
		further: make(chan link.Line), wants: make(chan uint32)}
	echo := process(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { _, _ = io.Copy(c, c); _ = c.Close() })
	first, _, _ := l.connection()
	var running sync.WaitGroup
	running.Go(func() {
		deliver.NewPool(first.Clients, to(echo.String()),
			slog.New(slog.DiscardHandler)).Gather(gather).Run(ctx, l.further, l.wants)
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		server.Stop()
	})
	return l
}

// connection makes one more. end ends it in order, as the link does when it knows of an end, and
// cut cuts the wire.
func (l *laptop) connection() (line link.Line, end, cut func()) {
	var wire atomic.Pointer[net.Conn]
	conn, err := grpc.NewClient("passthrough:///manager",
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				if wire.Load() != nil {
					return nil, net.ErrClosed
				}
				c, err := net.Dial("tcp", l.addr)
				wire.Store(&c)
				return c, err
			}))...)
	require.NoError(l, err)
	ctx, cancel := context.WithCancel(l.ctx)
	end = func() { cancel(); _ = conn.Close() }
	l.Cleanup(end)
	return link.Line{Context: ctx, Clients: clientpb.NewClientsClient(conn)}, end,
		func() { _ = (*wire.Load()).Close() }
}

// widen adds the further connections.
func (l *laptop) widen() (ends, cuts []func()) {
	for range link.Further {
		line, end, cut := l.connection()
		l.further <- line
		ends, cuts = append(ends, end), append(cuts, cut)
	}
	return ends, cuts
}

// parks waits until so many streams are parked on each connection.
func (l *laptop) parks(wanted ...int) {
	l.Helper()
	require.Eventuallyf(l, func() bool {
		got := slices.Sorted(maps.Values(l.manager.waiting()))
		return slices.Equal(wanted, got)
	}, patience, time.Millisecond, "parked as %v", wanted)
}

func TestTunnelsAreSpreadOverTheConnections(t *testing.T) {
	l := newLaptop(t, &registry{}, time.Hour)
	l.parks(2) // others are about to come
	l.widen()
	l.parks(2, 2, 2, 2)
	over := map[string]int{}
	for range 8 {
		f := l.manager.open(t)
		over[f.over]++
		assert.True(t, f.echoes())
	}
	assert.Equal(t, []int{2, 2, 2, 2}, slices.Sorted(maps.Values(over)))
	require.Eventually(t, func() bool { return len(l.manager.waiting()) == 4 && l.manager.all() >= 8 },
		patience, time.Millisecond, "and so are their successors")
}

func TestAConnectionTakesOnlyItsOwnTunnelsWithIt(t *testing.T) {
	for name, how := range map[string]func(end, cut func()){
		"when its end is known":         func(end, _ func()) { end() },
		"when the wire is cut":          func(_, cut func()) { cut() },
		"when the end is known by then": func(end, cut func()) { cut(); end() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t, &registry{}, time.Hour)
			ends, cuts := l.widen()
			l.parks(2, 2, 2, 2)
			byConnection := map[string][]flow{}
			for range 8 {
				f := l.manager.open(t)
				byConnection[f.over] = append(byConnection[f.over], f)
			}
			require.Eventually(t, func() bool { return l.manager.all() >= 8 }, patience, time.Millisecond)
			how(ends[0], cuts[0])
			require.Eventually(t, func() bool {
				return len(l.manager.waiting()) == link.Further &&
					l.manager.all() >= 8
			}, patience, time.Millisecond,
				"what was parked on it is parked on the others")
			lost := 0
			for _, flows := range byConnection {
				if !flows[0].echoes() {
					lost++
				}
				for _, f := range flows[1:] {
					assert.Equal(t, flows[0].echoes(), f.echoes(), "the others are as it is")
				}
			}
			assert.Equal(t, 1, lost, "of the connections")
			// The one that takes its place gets its share of the next ones.
			line, _, _ := l.connection()
			l.further <- line
			tunnels := 0
			for ; tunnels < 256 && byConnection[l.manager.open(t).over] != nil; tunnels++ {
			}
			assert.Less(t, tunnels, 256)
		})
	}
}

func TestWithoutFurtherConnectionsAllIsParkedOnTheFirst(t *testing.T) {
	t.Run("after a while", func(t *testing.T) {
		newLaptop(t, &registry{}, 50*time.Millisecond).parks(8)
	})
	t.Run("at once if somebody waits", func(t *testing.T) {
		l := newLaptop(t, &registry{}, time.Hour)
		l.parks(2)
		l.wants <- 1
		l.parks(8)
	})
}

func TestAConnectionThatTakesNoStreamsIsLeftToItself(t *testing.T) {
	m := &registry{silent: map[string]bool{}}
	l := newLaptop(t, m, time.Hour)
	l.widen()
	l.parks(2, 2, 2, 2)
	m.mu.Lock()
	refused := from(m.parked[0])
	m.silent[refused] = true
	m.mu.Unlock()
	over := map[string]int{}
	for range 40 {
		over[m.open(t).over]++
	}
	assert.Len(t, over, 4)
	assert.Equal(t, 2, over[refused], "what was parked before")
}

func TestTheManagerSaysWhenItHasEnough(t *testing.T) {
	l := newLaptop(t, &registry{most: 20}, time.Hour)
	l.widen()
	l.wants <- 100
	require.Eventually(t, func() bool { return l.manager.all() == 20 }, patience, time.Millisecond)
	for range 50 {
		assert.True(t, l.manager.open(t).echoes())
	}
	require.Eventually(t, func() bool { return l.manager.all() >= 8 }, patience, time.Millisecond)
}
