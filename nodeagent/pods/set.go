// SPDX-License-Identifier: Apache-2.0

// Package pods keeps the pods of an assignment steered: it opens listeners in each pod's network
// namespace, attaches the steering program, serves what arrives, proves by probes that all of it
// works, and lets go again without losing a connection.
//
// Each pod has a goroutine of its own that works towards the wanted state, so that one that fails
// holds up no other.
package pods

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/datagrams"
	"sidestep.dev/sidestep/nodeagent/mesh"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// Finder finds the network namespaces of pods.
type Finder interface {
	Find(uid string, ips []netip.Addr) (Namespace, error)
	// Alive says whether a process of the pod is still in the namespace.
	Alive(uid string, id netns.ID) bool
}

// Namespace is where everything is opened that is to be in a pod.
type Namespace interface {
	steer.Namespace
	ID() netns.ID
	Gateways() ([]netip.Addr, error)
	Listen(ip netip.Addr) (*net.TCPListener, error)
	Dial(ctx context.Context, from netip.Addr, to netip.AddrPort,
		bound func(netip.AddrPort)) (*net.TCPConn, error)
	BeginAs(from netip.Addr, to netip.AddrPort, soon bool, introduce func(fd int)) (*podnet.Begun, error)
	Close() error
}

// Steering loads programs; Program is the steering of one pod. See package steer for both.
type Steering interface {
	Load() (Program, error)
	Datapath() (chosen steer.Datapath, why string)
	Sweep(keep func(inode uint64) bool) error
}

// Program is what steers one pod.
type Program interface {
	SetListener(*net.TCPListener) error
	Add(netip.AddrPort) error
	Remove(netip.AddrPort) error
	Attach(steer.Namespace) error
	Detach() error
	Outcomes() (map[bpf.Outcome]uint64, error)
	// Datagrams says why datagrams cannot be steered, if that is so.
	Datagrams() error
	DatagramOutcomes() (map[bpf.Outcome]uint64, error)
	datagrams.Steering
	Close() error
}

// Clients prepares pods for being told who their clients are. See package peername.
type Clients interface {
	Attach(uid string, id netns.ID) (Introducer, error)
}

// Introducer tells one pod who its clients are.
type Introducer interface {
	// Introduce says whom a socket, which has not connected yet, is for.
	Introduce(fd int, client netip.AddrPort) error
	Close() error
}

// Meshes knows the proxies that service meshes have in pods. See package mesh.
type Meshes interface {
	Open(uid string, ns Namespace) Mesh
}

// Mesh is the part that one pod has in a mesh, if any.
type Mesh interface {
	Look(targets []netip.AddrPort) (mesh.Proxy, error)
	Missed() (target netip.AddrPort, missed bool)
	Older(port uint16) (n int, err error)
	Close() error
}

// Config is what a Set works with.
type Config struct {
	Finder    Finder
	Steering  Steering
	Clients   Clients
	Meshes    Meshes   // nil: there are none
	Counting  Counting // nil: connections are not counted
	Tunnels   proxy.Tunnels
	Datagrams *datagrams.Metrics // nil: datagrams are not counted
	Takeover  Takeover           // nil: connections that are open already are left alone
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

// Set is the pods of the node that were assigned, and those that are being let go.
type Set struct {
	cfg     Config
	ctx     context.Context // ends when connections are not waited for any longer
	cancel  context.CancelCauseFunc
	changed chan struct{}

	mu         sync.Mutex
	closed     bool          // no more assignments: shutting down
	superseded chan struct{} // closed: no more assignments either, until Resume
	assigned   bool
	revision   uint64
	pods       map[string]*pod   // by UID
	occupied   map[netns.ID]*pod // network namespaces that pods share
	running    sync.WaitGroup
}

// New makes an empty Set.
func New(cfg Config) *Set {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Set{
		cfg: cfg.withDefaults(), ctx: ctx, cancel: cancel, pods: map[string]*pod{},
		occupied: map[netns.ID]*pod{},
		changed:  make(chan struct{}, 1), superseded: make(chan struct{}),
	}
}

// Apply makes the assignment the wanted state and returns at once. Assignments that come after
// Close, or after another agent has taken over, change nothing.
func (s *Set) Apply(a *agentpb.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || isClosed(s.superseded) {
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
		p.want(want)
	}
	for uid, p := range s.pods {
		if wanted[uid] == nil {
			p.want(nil)
		}
	}
	s.assigned = true
	s.notify()
}

// Assigned says whether an assignment has come, and every pod of it was tried at least once.
func (s *Set) Assigned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assigned && !slices.ContainsFunc(s.list(), func(p *pod) bool { return !p.tried() })
}

// Changed receives when a report would differ from the one before, counters aside.
func (s *Set) Changed() <-chan struct{} { return s.changed }

// Superseded is closed once another agent has taken over a pod, or StandBy was called; until Resume
// is.
func (s *Set) Superseded() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.superseded
}

// Resume takes the pods back, once the steering has been renewed because the agent that had taken
// over is gone.
func (s *Set) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isClosed(s.superseded) {
		s.superseded = make(chan struct{})
	}
	for _, p := range s.list() {
		p.reprobe()
	}
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

// Probe proves everything anew, such as after the connection to the manager was lost.
func (s *Set) Probe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		p.reprobe()
	}
}

// SteeredAgain says that new connections have not been steered for a while, and are now: those that
// came to the apps meanwhile are older.
func (s *Set) SteeredAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list() {
		p.lookAgain()
	}
}

// Responsive says whether connections that are steered here are being taken. As long as they are
// not, they must not be steered.
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

// Sweep removes what former agents have left behind and this one has no use for. While some pod has
// not been opened yet, its namespace is unknown, and a former agent may be serving it.
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
		p.want(nil)
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

// forget removes a pod that was let go, unless it has been assigned again.
func (s *Set) forget(p *pod) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.wanted() != nil {
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

// StandBy leaves everything to a younger agent: nothing more will be attached, and what is open is
// served.
func (s *Set) StandBy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !isClosed(s.superseded) {
		close(s.superseded)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func equal(a, b *agentpb.Pod) bool { return (a == nil) == (b == nil) && proto.Equal(a, b) }
