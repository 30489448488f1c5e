package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// row is one kind of load.
type row struct {
	name, unit string
	measure    func(ctx context.Context, base string) (sample, error) // base is a URL without a path
}

// sample is one measurement. Latencies are in µs, 0 if the tool does not say.
type sample struct{ rate, p50, p99 float64 }

// way is one way to the app.
type way struct {
	name, port  string
	intercepted bool
}

// direct is first: others are compared with it.
var ways = []way{
	{name: "direct", port: appPort},
	{name: "intercepted", port: appPort, intercepted: true},
	{name: "sidecar, HTTP", port: httpPort},
	{name: "sidecar, bytes", port: bytesPort},
}

const bulkBytes = 1 << 30

func (b *bench) rows(dir string) ([]row, error) {
	zeros := filepath.Join(dir, "zeros") // a hole: costs no disk
	if err := os.WriteFile(zeros, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(zeros, bulkBytes); err != nil {
		return nil, err
	}
	var rows []row
	for _, connections := range []int{1, 32, 256} {
		rows = append(rows, row{fmt.Sprintf("HTTP/1.1, %d connections", connections), "requests/s", func(ctx context.Context, base string) (sample, error) {
			return b.wrk(ctx, connections, base+"/bytes/256")
		}})
	}
	for _, load := range []struct{ connections, streams int }{{1, 32}, {32, 8}} {
		rows = append(rows, row{fmt.Sprintf("HTTP/2, %d connections of %d streams", load.connections, load.streams), "requests/s",
			func(ctx context.Context, base string) (sample, error) {
				return b.h2load(ctx, load.connections, load.streams, base+"/bytes/256")
			}})
	}
	rows = append(rows,
		row{"download of 1 GiB", "MB/s", func(ctx context.Context, base string) (sample, error) {
			return b.curl(ctx, "%{speed_download}", fmt.Sprintf("%s/bytes/%d", base, bulkBytes))
		}},
		row{"upload of 1 GiB", "MB/s", func(ctx context.Context, base string) (sample, error) {
			return b.curl(ctx, "%{speed_upload}", "-T", zeros, "-H", "Expect:", base+"/sink")
		}},
		row{"new connection per request, 32 at a time", "requests/s", func(ctx context.Context, base string) (sample, error) {
			return b.wrk(ctx, 32, base+"/bytes/256", "-H", "Connection: close")
		}})
	return rows, nil
}

// passThrough measures unmatched traffic.
func (b *bench) passThrough(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "sidestep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rows, err := b.rows(dir)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "unmatched traffic\tway\trate\tunit\tof direct\tspread\tp50 µs\tp99 µs\t")
	for _, r := range rows {
		if !b.only.MatchString(r.name) {
			continue
		}
		samples, err := b.measure(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		b.report(table, r, samples)
	}
	return table.Flush()
}

// measure takes all ways in turn, round after round.
func (b *bench) measure(ctx context.Context, r row) (map[string][]sample, error) {
	samples := map[string][]sample{}
	for range b.rounds {
		for _, w := range ways {
			s, err := b.once(ctx, r, w)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			samples[w.name] = append(samples[w.name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "measured: %s\n", r.name)
	return samples, nil
}

func (b *bench) once(ctx context.Context, r row, w way) (s sample, err error) {
	if w.intercepted {
		if err := b.intercept(ctx, "measured"); err != nil {
			return s, err
		}
		defer func() {
			if left := b.leave(ctx, "measured"); err == nil {
				err = left
			}
		}()
	}
	return r.measure(ctx, "http://"+b.pod.IP+":"+w.port)
}
