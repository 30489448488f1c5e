// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/rawip"
)

// beatEvery is the pause between heartbeats. It is well below the second after which the program takes the agent
// for dead.
const beatEvery = 200 * time.Millisecond

// program is what watches in the kernel.
type program struct {
	pod      *Pod
	objs     *bpf.Headwatch
	reader   *ringbuf.Reader
	devices  *devices
	injector *rawip.Injector
	counted  map[bpf.HeadwatchOutcome]uint64 // what the counters have of the kernel's
	served   chan struct{}                   // closed when serve has returned
}

func load(p *Pod) (_ *program, err error) {
	objs, err := bpf.LoadHeadwatch(p.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	g := &program{
		pod: p, objs: objs, devices: newDevices(p.cfg), injector: rawip.NewInjector(p.cfg.Namespace),
		counted: map[bpf.HeadwatchOutcome]uint64{}, served: make(chan struct{}),
	}
	if g.reader, err = ringbuf.NewReader(objs.Events); err != nil {
		return nil, errors.Join(fmt.Errorf("open ring buffer of queued packets: %w", err), objs.Close())
	}
	if err := g.heartbeat(); err != nil {
		return nil, errors.Join(err, g.reader.Close(), objs.Close())
	}
	go g.serve()
	return g, nil
}

// count adds what the kernel has counted since the last time.
func (g *program) count() error {
	c := g.pod.cfg.Counters
	for outcome, to := range map[bpf.HeadwatchOutcome]*atomic.Uint64{
		bpf.PacketQueued: &c.Queued, bpf.TimedOut: &c.TimedOut, bpf.NoRoom: &c.NoRoom,
	} {
		var perCPU []uint64
		if err := g.objs.Outcomes.Lookup(outcome, &perCPU); err != nil {
			return fmt.Errorf("read outcomes of headwatch: %w", err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		to.Add(sum - g.counted[outcome])
		g.counted[outcome] = sum
	}
	return nil
}

// forget removes the flows of a port.
func (g *program) forget(port uint16) error {
	var gone []bpf.FlowKey
	var key bpf.FlowKey
	var flow bpf.Flow
	all := g.objs.Flows.Iterate()
	for all.Next(&key, &flow) {
		if key.LocalPort == port {
			gone = append(gone, key)
		}
	}
	errs := []error{all.Err()}
	for _, key := range gone {
		if err := g.objs.Flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget connections to port %d: %w", port, err)
	}
	return nil
}

// close lets everything pass, and waits until no policy is asked.
func (g *program) close() error {
	err := errors.Join(g.devices.detach(), g.count(), g.reader.Close())
	<-g.served
	return errors.Join(err, g.injector.Close(), g.objs.Close())
}

// clock returns CLOCK_MONOTONIC, which the program reads, too.
func clock() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

func (g *program) heartbeat() error {
	now, err := clock()
	if err != nil {
		return err
	}
	if err := g.objs.Heartbeat.Put(uint32(0), uint64(now)); err != nil {
		return fmt.Errorf("update headwatch heartbeat: %w", err)
	}
	return nil
}

// serve decides on packets until close. It beats, because the heartbeat says that somebody decides.
func (g *program) serve() {
	defer close(g.served)
	log := g.pod.cfg.Log
	d := newDecider(g)
	var record ringbuf.Record
	var beaten time.Time
	for {
		if now := time.Now(); now.Sub(beaten) >= beatEvery {
			if err := g.heartbeat(); err != nil {
				log.Error("headwatch", "error", err)
			}
			beaten = now
			g.reader.SetDeadline(now.Add(beatEvery))
		}
		err := g.reader.ReadInto(&record)
		switch {
		case err == nil:
			d.packet(record.RawSample)
		case errors.Is(err, ringbuf.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			log.Error("read queued packets", "error", err)
			return // without a heartbeat everything passes
		}
	}
}
