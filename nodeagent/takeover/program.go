// SPDX-License-Identifier: Apache-2.0

package takeover

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
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// beatEvery is well below the second after which the program takes the agent for dead.
const beatEvery = 200 * time.Millisecond

// program is what watches in the kernel.
type program struct {
	port       *Port
	objs       *bpf.Takeover
	reader     *ringbuf.Reader
	devices    *devices
	injector   *injector
	generation uint32
	needles    []match.Needle
	counted    map[bpf.TakeoverOutcome]uint64 // what the port's counters have of the kernel's
	closed     chan struct{}
}

func load(p *Port) (_ *program, err error) {
	objs, err := bpf.LoadTakeover(p.cfg.Port, p.cfg.hold)
	if err != nil {
		return nil, err
	}
	g := &program{
		port: p, objs: objs, devices: newDevices(p.cfg), injector: newInjector(p.cfg.Namespace),
		counted: map[bpf.TakeoverOutcome]uint64{}, closed: make(chan struct{}),
	}
	if g.reader, err = ringbuf.NewReader(objs.Events); err != nil {
		return nil, errors.Join(fmt.Errorf("read what the kernel holds back: %w", err), objs.Close())
	}
	if err := g.beat(); err != nil {
		return nil, errors.Join(err, g.reader.Close(), objs.Close())
	}
	p.running.Go(g.serve)
	return g, nil
}

// setRules exchanges what the kernel looks for, if it is not the same.
func (g *program) setRules(rules []Rule) error {
	wanted := needles(rules)
	if g.generation > 0 && equal(wanted, g.needles) {
		return nil
	}
	a, err := newAutomaton(g.generation+1, wanted)
	if err != nil {
		return err
	}
	m, err := bpf.NewAutomaton(a)
	if err != nil {
		return err
	}
	defer m.Close() // the outer map keeps it
	if err := g.objs.Rules.Put(uint32(0), m); err != nil {
		return fmt.Errorf("exchange what is looked for in open connections: %w", err)
	}
	g.generation++
	g.needles = wanted
	return nil
}

func equal(a, b []match.Needle) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// follow makes the kernel watch the connections, except for those that it watches already, and
// forget those that are gone.
func (g *program) follow(older, before map[bpf.FlowKey]sockdiag.Socket) error {
	for key, s := range older {
		if was, ok := before[key]; ok && was.Cookie() == s.Cookie() {
			continue
		}
		if err := g.objs.Flows.Put(key, bpf.Flow{}); err != nil {
			return fmt.Errorf("watch the connection from %s: %w", s.Remote, err)
		}
	}
	for key := range before {
		if _, ok := older[key]; ok {
			continue
		}
		if err := g.objs.Flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a connection that has ended: %w", err)
		}
	}
	return nil
}

func (g *program) attach() error { return g.devices.attach(g.objs.Watch) }

// count adds what the kernel has counted since the last time.
func (g *program) count() error {
	c := g.port.cfg.Counters
	for outcome, to := range map[bpf.TakeoverOutcome]*atomic.Uint64{
		bpf.HeldBack: &c.Held, bpf.GaveUp: &c.LeftLate, bpf.Untold: &c.LeftUntold,
	} {
		var perCPU []uint64
		if err := g.objs.Counts.Lookup(outcome, &perCPU); err != nil {
			return fmt.Errorf("count what was held back: %w", err)
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

// close lets everything pass. The rest of it goes when serve has ended.
func (g *program) close() error {
	defer close(g.closed)
	return errors.Join(g.devices.detach(), g.count(), g.reader.Close())
}

// clock is what the program reads, too.
func clock() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

func (g *program) beat() error {
	now, err := clock()
	if err != nil {
		return err
	}
	if err := g.objs.Beat.Put(uint32(0), uint64(now)); err != nil {
		return fmt.Errorf("say that held packets are being decided on: %w", err)
	}
	return nil
}

// serve decides on packets until close. It is also what tells the kernel that there is somebody to
// decide.
func (g *program) serve() {
	defer func() {
		<-g.closed // until then others use it too
		g.injector.close()
		_ = g.objs.Close()
	}()
	d := newDecider(g)
	var record ringbuf.Record
	var beaten time.Time
	for {
		if now := time.Now(); now.Sub(beaten) >= beatEvery {
			if err := g.beat(); err != nil {
				g.port.cfg.Log.Error("open connections", "error", err)
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
			g.port.cfg.Log.Error("read what the kernel holds back", "error", err)
			return // without a beat everything passes
		}
	}
}
