// SPDX-License-Identifier: Apache-2.0

package tcpstats_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

// states are what a connection can meet with.
var states = []struct {
	name            string
	attached, count bool
	marked          bool
}{
	{name: "nothing is attached"},
	{name: "another port is counted", attached: true},
	{name: "counted, accepted by the app", attached: true, count: true},
	{name: "counted, steered", attached: true, count: true, marked: true},
}

// eachState runs a benchmark in every state, with a listener of this process.
func eachState(b *testing.B, run func(b *testing.B, w *world, l *net.TCPListener)) {
	for _, s := range states {
		b.Run(s.name, func(b *testing.B) {
			w := newWorld(b)
			var h *tcpstats.Pod
			if s.attached {
				h = w.hold(b)
				w.count(b, h, port+1)
			}
			if s.count {
				w.count(b, h, port)
			}
			l := w.plain(b, w.pod.IP4, port)
			if s.marked {
				require.NoError(b, h.Mark(l))
			}
			measure(b, w, s.attached, func() { run(b, w, l) })
		})
	}
}

// measure adds what the program itself has taken, which tells more than the difference of two runs
// on a busy machine.
func measure(b *testing.B, w *world, attached bool, run func()) {
	if !attached {
		run()
		return
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	require.NoError(b, err)
	defer stats.Close()
	dir, err := os.Open(filepath.Dir(w.cgroup))
	require.NoError(b, err)
	defer dir.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupSockOps})
	require.NoError(b, err)
	require.Len(b, found.Programs, 1)
	program, err := ebpf.NewProgramFromID(found.Programs[0].ID)
	require.NoError(b, err)
	defer program.Close()
	before, err := program.Stats()
	require.NoError(b, err)
	run()
	after, err := program.Stats()
	require.NoError(b, err)
	b.ReportMetric(float64(after.RunCount-before.RunCount)/float64(b.N), "runs/op")
	b.ReportMetric(float64((after.Runtime-before.Runtime).Nanoseconds())/float64(b.N), "program-ns/op")
}

// BenchmarkConnect is what a connection costs that is opened and closed again.
func BenchmarkConnect(b *testing.B) {
	eachState(b, func(b *testing.B, w *world, l *net.TCPListener) {
		to := l.Addr().String()
		require.NoError(b, w.pod.Do(func() error {
			for b.Loop() {
				var d net.Dialer
				d.SetMultipathTCP(false)
				c, err := d.DialContext(context.Background(), "tcp", to)
				if err != nil {
					return err
				}
				accepted, err := l.AcceptTCP()
				if err != nil {
					return err
				}
				// By resets, lest the ports run out.
				_ = accepted.SetLinger(0)
				_ = accepted.Close()
				_ = c.Close()
			}
			return nil
		}))
	})
}

// BenchmarkBytes is what bytes cost on a connection.
func BenchmarkBytes(b *testing.B) {
	eachState(b, func(b *testing.B, w *world, l *net.TCPListener) {
		c, err := w.dial(b.Context(), w.outside, w.pod.IP4, port)
		require.NoError(b, err)
		defer c.Close()
		accepted, err := l.AcceptTCP()
		require.NoError(b, err)
		defer accepted.Close()
		block, got := make([]byte, 16<<10), make([]byte, 16<<10)
		b.SetBytes(int64(len(block)))
		for b.Loop() {
			_, err := c.Write(block)
			require.NoError(b, err)
			for n := 0; n < len(block); {
				m, err := accepted.Read(got)
				require.NoError(b, err)
				n += m
			}
		}
	})
}

// BenchmarkTraffic is what reading the counters of a port costs.
func BenchmarkTraffic(b *testing.B) {
	w := newWorld(b)
	h := w.hold(b)
	w.count(b, h, port)
	for b.Loop() {
		_, err := h.Traffic(port)
		require.NoError(b, err)
	}
}
