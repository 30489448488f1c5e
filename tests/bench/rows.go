// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// row is one kind of load, and the ways to the app on which it is measured.
type row struct {
	name, unit string // of the rate
	per        string // what the CPU time is counted for
	ways       []way  // the others are compared with the first
	prepare    func(ctx context.Context) (undo func(), err error)
	measure    func(ctx context.Context, w way) (sample, error)
}

// way is one way to the app.
type way struct {
	name      string
	address   string   // of the app, or of what stands before it
	from      string   // machine that the load comes from; "" is the pod's node
	intercept []string // flags of an intercept that there is meanwhile
}

// sample is one measurement. Latencies are in µs, 0 if the tool does not say.
type sample struct {
	rate, p50, p99 float64
	done           float64 // requests, or MB, in the time
	cpu            float64 // µs of all CPUs for one of these, beyond what the machine uses at rest
}

// machine returns where the load comes from.
func (w way) machine() string { return cmp.Or(w.from, node) }

func (w way) url(path string) string { return "http://" + w.address + path }

// ways returns the ways to an app: past the intercept, through it, and through all proxies before
// the app.
func (b *bench) ways(port int, name string) []way {
	at := func(p *place, port int) string { return fmt.Sprintf("%s:%d", p.IP, port) }
	all := []way{
		{name: direct, address: at(b.plain, port)},
		{name: intercepted, address: at(b.plain, port), intercept: unmatched(name)},
	}
	for _, x := range proxies {
		if x.app == port && x.kind != "haproxy-h2" {
			all = append(all, way{name: x.name, address: at(b.meshed, x.port)})
		}
	}
	return all
}

// unmatched are the flags of an intercept that a load without headers does not match.
func unmatched(port string) []string {
	return []string{"--port", fmt.Sprint(laptopPort, ":", port), "--http-header", "x-user=ann"}
}

// waysHTTP2 leaves out what cannot speak HTTP/2 on both sides.
func (b *bench) waysHTTP2(port int, name string) (all []way) {
	for _, w := range b.ways(port, name) {
		if w.name != haproxy && w.name != nginxProxy {
			all = append(all, w)
		}
	}
	for _, x := range proxies {
		if x.app == port && x.kind == "haproxy-h2" {
			all = append(all, way{name: x.name, address: fmt.Sprintf("%s:%d", b.meshed.IP, x.port)})
		}
	}
	return all
}

// rows are all loads. dir is for files.
func (b *bench) rows(dir string) ([]row, error) {
	bulk, err := b.bulkRows(dir)
	if err != nil {
		return nil, err
	}
	return slices.Concat(b.http1Rows(), b.http2Rows(), bulk, []row{b.connectionRow()}, b.matchedRows(),
		b.tunnelRows()), nil
}

func (b *bench) http1Rows() (rows []row) {
	for _, app := range []struct {
		name, intercept string
		port            int
	}{{"Go", "go", goPort}, {"nginx", "nginx", nginxPort}, {"Node", "node", nodePort}} {
		for _, connections := range []int{1, 32, 256} {
			rows = append(rows, row{
				name: fmt.Sprintf("HTTP/1.1, %s app, connections: %d", app.name, connections),
				unit: "requests/s", per: "request",
				ways: b.ways(app.port, app.intercept),
				measure: func(ctx context.Context, w way) (sample, error) {
					return b.wrk(ctx, w, connections)
				},
			})
		}
	}
	return rows
}

func (b *bench) http2Rows() (rows []row) {
	for _, load := range []struct{ connections, streams int }{{1, 32}, {32, 8}} {
		rows = append(rows, row{
			name: fmt.Sprintf("HTTP/2, Go app, connections: %d of %d streams", load.connections,
				load.streams), unit: "requests/s", per: "request",
			ways: b.waysHTTP2(goPort, "go"),
			measure: func(ctx context.Context, w way) (sample, error) {
				return b.h2load(ctx, load.connections, load.streams, w.url("/bytes/256"))
			},
		})
	}
	for _, kind := range []struct{ name, unit, flag string }{
		{"gRPC, unary calls, 1 at a time", "calls/s", "unary=1"},
		{"gRPC, unary calls, 32 at a time", "calls/s", "unary=32"},
		{"gRPC, messages back and forth on 32 streams", "messages/s", "stream=32"},
	} {
		rows = append(rows, row{
			name: kind.name, unit: kind.unit, per: "call", ways: b.waysHTTP2(grpcPort, "grpc"),
			measure: func(ctx context.Context, w way) (sample, error) {
				return b.grpcLoad(ctx, kind.flag, w.address)
			},
		})
	}
	return rows
}

// bulkBytes is more than is transferred in the time.
const bulkBytes = 64 << 30

func (b *bench) bulkRows(dir string) ([]row, error) {
	zeros := filepath.Join(dir, "zeros") // a hole: costs no disk
	if err := os.WriteFile(zeros, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(zeros, bulkBytes); err != nil {
		return nil, err
	}
	ways := b.ways(goPort, "go")
	return []row{
		{name: "download, one connection", unit: "MB/s", per: "MB", ways: ways,
			measure: func(ctx context.Context, w way) (sample, error) {
				return b.curl(ctx, w.url(fmt.Sprintf("/bytes/%d", int64(bulkBytes))))
			}},
		{name: "upload, one connection", unit: "MB/s", per: "MB", ways: ways,
			measure: func(ctx context.Context, w way) (sample, error) {
				if w.name == nginxProxy { // it keeps bodies on disk
					return sample{}, errNotMeasured
				}
				return b.curl(ctx, "-T", zeros, "-H", "Expect:", w.url("/sink"))
			}},
	}, nil
}

func (b *bench) connectionRow() row {
	return row{
		name: "new connection per request, 32 at a time", unit: "requests/s", per: "request",
		ways: b.ways(goPort, "go"),
		measure: func(ctx context.Context, w way) (sample, error) {
			return b.wrk(ctx, w, 32, "-H", "Connection: close")
		},
	}
}
