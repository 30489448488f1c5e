// SPDX-License-Identifier: Apache-2.0

// Package pods supervises the pods of an assignment. It finds each pod's network namespace, opens
// listeners, the steering program and the parts there, attaches, proves by probes that all of it
// works, and drains it again without losing a connection. What the parts do it does not know: see
// package part.
//
// Each pod has a goroutine of its own that works towards what is wanted, so that one that fails holds
// up no other. The table of its states is in state.go.
package pods

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// Config is what a Set works with.
type Config struct {
	Finder   *podnet.Finder
	Steering *steer.Node
	// Parts are what is done for each pod besides steering it, in the order in which they are opened.
	Parts   []part.Kind
	Tunnels proxy.Tunnels
	// Serve serves one steered connection and closes it.
	Serve func(ctx context.Context, c *net.TCPConn, t *proxy.Target)
	Log   *slog.Logger

	// ProbeEvery is how often everything that works is proved to work still. Default 10 s.
	ProbeEvery time.Duration
	// WatchEvery is how often it is checked that pods still exist. Default 1 s.
	WatchEvery time.Duration
	// Linger is how long listeners go on accepting after the kernel was told not to send them more:
	// connections are then still on their way, until the last packet of the handshake of a slow
	// client, or its repetition, has come. Default 5 s.
	Linger time.Duration
	// AllowHostNetwork lets pods on the node's network be steered, together with whatever else
	// listens on the same port of its addresses.
	AllowHostNetwork bool
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value   *time.Duration
		instead time.Duration
	}{{&c.ProbeEvery, 10 * time.Second}, {&c.WatchEvery, time.Second}, {&c.Linger, 5 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.instead
		}
	}
	return c
}

// Set is the pods of the node that are assigned, and those that are being drained.
type Set struct {
	cfg     Config
	ctx     context.Context // ends when connections are not waited for any longer
	cancel  context.CancelCauseFunc
	changed chan struct{}

	running sync.WaitGroup
	// superseded is on while a newer node agent has the node. No assignment counts then.
	superseded signal

	mu       sync.Mutex
	closed   bool // no more assignments: shutting down
	assigned bool
	revision uint64
	pods     map[string]*pod   // by UID
	occupied map[netns.ID]*pod // network namespaces that pods share
}

// New returns an empty Set.
func New(cfg Config) *Set {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Set{
		cfg: cfg.withDefaults(), ctx: ctx, cancel: cancel, pods: map[string]*pod{},
		occupied: map[netns.ID]*pod{},
		changed:  make(chan struct{}, 1), superseded: signal{on: make(chan struct{})},
	}
}

// Apply makes the assignment the wanted state and returns at once. Assignments that come after
// Close, or after another agent has taken over, change nothing.
func (s *Set) Apply(a *agentpb.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.superseded.is() {
		return
	}
	s.revision = a.GetRevision()
	wanted := map[string]*agentpb.Pod{}
	for _, want := range a.GetPods() {
		wanted[want.GetUid()] = want
	}
	for uid, want := range wanted {
		p := s.pods[uid]
		if p == nil {
			p = newPod(s, want)
			s.pods[uid] = p
			s.running.Go(p.run)
		}
		p.assign(want)
	}
	for uid, p := range s.pods {
		if wanted[uid] == nil {
			p.assign(nil)
		}
	}
	s.assigned = true
	s.notify()
}

// Assigned reports whether an assignment has come, and every pod of it was tried at least once.
func (s *Set) Assigned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assigned && !slices.ContainsFunc(s.list(), func(p *pod) bool { return !p.ready() })
}

// Changed receives when a report would differ from the one before, counters aside.
func (s *Set) Changed() <-chan struct{} { return s.changed }

// Superseded is closed once a newer agent has taken over a pod, or StandBy was called; until Resume
// is.
func (s *Set) Superseded() <-chan struct{} { return s.superseded.wait() }

// StandBy leaves everything to a newer agent: nothing more is attached, and what is open is served.
func (s *Set) StandBy() { s.superseded.set() }

// Resume takes the pods back, once the steering has been renewed because the agent that had taken
// over is gone.
func (s *Set) Resume() {
	s.superseded.clear()
	s.Probe()
}

// Report is the full state of the node's assigned pods.
func (s *Set) Report() *agentpb.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &agentpb.Report{Revision: s.revision}
	for _, p := range s.list() {
		r.Targets = append(r.Targets, p.report()...)
	}
	return r
}

// Probe repeats all proofs, such as after the connection to the manager was lost.
func (s *Set) Probe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		p.reprobe()
	}
}

// SteeredAgain is to be called when new connections are steered after a while in which they were not:
// those that came to the apps meanwhile are older.
func (s *Set) SteeredAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		p.restart()
	}
}

// Responsive returns an error if steered connections are not being accepted. They must not be steered
// then.
func (s *Set) Responsive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		if err := p.responsive(); err != nil {
			return fmt.Errorf("pod %s: %w", p.name, err)
		}
	}
	return nil
}

// Sweep removes what former agents have left behind and this one has no use for. Nothing is removed
// while the namespace of some pod is unknown: a former agent may be serving it.
func (s *Set) Sweep() error {
	s.mu.Lock()
	unknown := !s.assigned
	keep := map[uint64]bool{}
	for _, p := range s.list() {
		inode, settled := p.settled()
		keep[inode] = true
		unknown = unknown || !settled
	}
	s.mu.Unlock()
	return s.cfg.Steering.Sweep(func(inode uint64) bool { return unknown || keep[inode] })
}

// Close gives all pods' new connections back to the app and waits until those that are open have
// ended, or ends them when ctx ends, in order where that is possible within seconds.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, p := range s.pods {
		p.assign(nil)
	}
	s.mu.Unlock()
	drained := make(chan struct{})
	go func() {
		s.running.Wait()
		close(drained)
	}()
	select {
	case <-drained:
		s.cancel(nil)
		return nil
	case <-ctx.Done():
	}
	s.cancel(proxy.ErrDrained)
	<-drained
	return fmt.Errorf("connections were still open: %w", context.Cause(ctx))
}

// list is the pods in a fixed order. s.mu must be held.
func (s *Set) list() []*pod {
	return slices.SortedFunc(maps.Values(s.pods), func(a, b *pod) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.uid, b.uid))
	})
}

// forget removes a pod of which nothing is open or wanted any more.
func (s *Set) forget(p *pod) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.over() {
		return false
	}
	delete(s.pods, p.uid)
	return true
}

func (s *Set) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// signal is a condition that can be waited for, and that may be over again.
type signal struct {
	mu sync.Mutex
	on chan struct{} // closed while it is
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

func (s *signal) is() bool {
	select {
	case <-s.wait():
		return true
	default:
		return false
	}
}

func (s *signal) set() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.on:
	default:
		close(s.on)
	}
}

func (s *signal) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.on:
		s.on = make(chan struct{})
	default:
	}
}
