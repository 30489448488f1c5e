// SPDX-License-Identifier: Apache-2.0

package deliver_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/client/deliver"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/internal/tunnel"
)

// A long way: what each TCP connection over it has in flight is bounded, by its window.
const (
	roundTrip = 80 * time.Millisecond
	window    = 1600 << 10 // bytes, which make 20 MB/s
)

// far returns a listener whose connections to addr have a long round-trip time.
func far(t testing.TB, addr string) net.Addr {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			remote, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close()
				continue
			}
			go travel(remote, near)
			go travel(near, remote)
		}
	}()
	return listener.Addr()
}

// travel carries bytes late, and no more within a round trip than the window has.
func travel(to, from net.Conn) {
	const most = 32 << 10
	type segment struct {
		sent  time.Time
		bytes []byte
	}
	const segments = 4 * window / 1024
	under := make(chan segment, segments)
	acknowledged := make(chan segment, segments)
	var inFlight atomic.Int64
	room := make(chan struct{}, 1)
	go func() {
		for s := range under {
			time.Sleep(time.Until(s.sent.Add(roundTrip / 2)))
			_, _ = to.Write(s.bytes)
			acknowledged <- s
		}
		close(acknowledged)
		_ = to.Close()
	}()
	go func() {
		for s := range acknowledged {
			time.Sleep(time.Until(s.sent.Add(roundTrip)))
			inFlight.Add(int64(-len(s.bytes)))
			select {
			case room <- struct{}{}:
			default:
			}
		}
	}()
	defer close(under)
	for {
		for inFlight.Load() > window-most {
			<-room
		}
		buffer := make([]byte, most)
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		inFlight.Add(int64(n))
		under <- segment{time.Now(), buffer[:n]}
	}
}

// farPool runs a Pool with so many connections to a manager that is far away.
func farPool(b *testing.B, connections int, target to) *manager {
	m := &manager{parked: make(chan clientpb.Clients_AcceptServer, 1000)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	server := grpc.NewServer(tunnel.ServerOptions()...)
	clientpb.RegisterClientsServer(server, m)
	go func() { _ = server.Serve(listener) }()
	way := far(b, listener.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	lines := make(chan link.Line, connections)
	var first clientpb.ClientsClient
	for range connections {
		conn, err := grpc.NewClient(way.String(),
			append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		require.NoError(b, err)
		b.Cleanup(func() { _ = conn.Close() })
		if first == nil {
			first = clientpb.NewClientsClient(conn)
		} else {
			lines <- link.Line{Context: ctx, Clients: clientpb.NewClientsClient(conn)}
		}
	}
	var running sync.WaitGroup
	running.Go(func() { deliver.NewPool(first, target, slog.New(slog.DiscardHandler)).Run(ctx, lines, nil) })
	b.Cleanup(func() {
		cancel()
		running.Wait()
		server.Stop()
	})
	require.Eventually(b, func() bool { return m.waiting.Load() >= 8 }, patience, time.Millisecond)
	return m
}

// BenchmarkFarAway measures eight tunnels that send as much as they can to a manager 80 ms away,
// and then one, behind which others make short requests.
func BenchmarkFarAway(b *testing.B) {
	source := process(b, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		defer c.Close()
		how := make([]byte, 1)
		zeros := make([]byte, 64<<10)
		for {
			if _, err := c.Read(how); err != nil {
				return
			}
			_, err := c.Write(zeros[:100])
			for err == nil && how[0] == 'b' {
				_, err = c.Write(zeros)
			}
		}
	})
	for _, connections := range []int{1, 2, 1 + link.Further} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			m := farPool(b, connections, to(source.String()))
			var received atomic.Int64
			bulk := func() io.Closer {
				c, _ := m.open(b)
				_, err := c.Write([]byte("b"))
				require.NoError(b, err)
				go func() {
					buffer := make([]byte, 256<<10)
					for {
						n, err := c.Read(buffer)
						if received.Add(int64(n)); err != nil {
							return
						}
					}
				}()
				return closer{c}
			}
			for b.Loop() {
				var all []io.Closer
				for range 8 {
					all = append(all, bulk())
				}
				time.Sleep(time.Second)
				received.Store(0)
				began := time.Now()
				time.Sleep(3 * time.Second)
				b.ReportMetric(float64(received.Load())/time.Since(began).Seconds()/1e6, "MB/s")
				for _, c := range all {
					_ = c.Close()
				}
				time.Sleep(time.Second)
				one := bulk()
				time.Sleep(time.Second)
				var took []time.Duration
				for range 30 {
					began := time.Now()
					c, _ := m.open(b)
					_, err := c.Write([]byte("r"))
					require.NoError(b, err)
					_, err = io.ReadFull(c, make([]byte, 100))
					require.NoError(b, err)
					took = append(took, time.Since(began))
					_ = c.Close()
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[15].Milliseconds()), "p50-ms")
				b.ReportMetric(float64(took[26].Milliseconds()), "p90-ms")
				b.ReportMetric(float64(took[29].Milliseconds()), "max-ms")
				_ = one.Close()
			}
		})
	}
}

type closer struct{ *tunnel.Conn }

func (c closer) Close() error { c.Reset("enough"); return nil }
