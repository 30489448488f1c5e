// SPDX-License-Identifier: Apache-2.0

// Package headwatch watches the heads of requests on raw packets that arrive at a pod, and gives verdicts on
// them before the app has seen them.
//
// A program in the kernel runs an automaton over what clients send to watched ports. It queues the packet that
// completes the head of a request which may match, and tells the node agent. The verdict is given here, on the
// bytes, after the HTTP parser that the proxy goes by has read them. Connections on which nothing matches cost
// no more than the automaton.
//
// Which connections of a port are watched is for its owner to say: those that it lists, or all. The kernel knows
// by a heartbeat that there is somebody to give verdicts. Without one, and when a verdict is late, all packets
// pass to the app.
package headwatch

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// Verdict is what becomes of a request whose packet is queued. There may be more verdicts some day: treat one
// that you do not know as Pass.
type Verdict uint8

const (
	// Pass gives the packet to the app.
	Pass Verdict = iota
	// End ends the connection before the app has seen the request: the client gets a reset.
	End
)

// Policy gives the verdicts on the requests to one port. Its methods are not called concurrently. They must
// neither wait nor call methods of Pod and Port.
type Policy interface {
	Verdict(head match.Head) Verdict
	// End ends a connection for the verdict of that name. After an error the request goes to the app.
	End(s *sockdiag.Socket) error
}

// Namespace is a pod's network namespace.
type Namespace interface {
	Do(fn func() error) error
}

// Timeout is how long a packet is queued at least, unless Config says otherwise.
const Timeout = 300 * time.Millisecond

// Config describes a pod.
type Config struct {
	Namespace Namespace
	Log       *slog.Logger
	// Counters may be nil.
	Counters *Counters
	// Timeout is how long a packet is queued while there is no verdict. 0 means the constant of that name.
	Timeout time.Duration
	// Clsact attaches by filters even where the kernel has tcx.
	Clsact bool
}

// Counters are what was done on a node.
type Counters struct {
	// Queued is the packets that were queued. It is less than the sum of the others by those that are queued now
	// or were asked about twice.
	Queued   atomic.Uint64
	Released atomic.Uint64 // packets that were queued and given to the app
	TimedOut atomic.Uint64 // packets that passed since there was no verdict in time
	NoRoom   atomic.Uint64 // packets that passed since there were too many to ask for verdicts
}

// Pod watches the ports of one pod. Its program is loaded while a port is watched.
type Pod struct {
	cfg   Config
	ports sync.Map // of *Port by number, for those who decide: they do not take mu

	mu         sync.Mutex
	watched    int
	program    *program // nil unless a port is watched
	generation uint32   // of the youngest automaton
}

// NewPod describes a pod of which nothing is watched yet.
func NewPod(cfg Config) *Pod {
	cfg.Timeout = cmp.Or(cfg.Timeout, Timeout)
	if cfg.Counters == nil {
		cfg.Counters = &Counters{}
	}
	return &Pod{cfg: cfg}
}

// Port is one watched port. Its methods must not be called concurrently, but those of several ports may.
type Port struct {
	pod    *Pod
	number uint16
	policy Policy

	deciding sync.Mutex // held while policy decides, and while closed changes
	closed   bool

	// sockets are those of the connections that are watched by list. What it points to is never changed.
	sockets atomic.Pointer[map[bpf.FlowKey]sockdiag.Socket]

	inForce bool // there is an automaton in the kernel, for needles and all
	needles []match.Needle
	all     bool
	listed  map[bpf.FlowKey]sockdiag.Socket // what the kernel has of sockets
}

// Open loads the program if this is the pod's first port. Nothing is watched before Watch.
func (p *Pod) Open(number uint16, policy Policy) (*Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.ports.Load(number); ok {
		return nil, fmt.Errorf("port %d is watched already", number)
	}
	if p.program == nil {
		_ = rlimit.RemoveMemlock() // reported where steering begins
		g, err := load(p)
		if err != nil {
			return nil, err
		}
		p.program = g
	}
	port := &Port{pod: p, number: number, policy: policy}
	port.sockets.Store(&map[bpf.FlowKey]sockdiag.Socket{})
	p.ports.Store(number, port)
	p.watched++
	return port, nil
}

// port returns a watched port, or nil.
func (p *Pod) port(number uint16) *Port {
	port, _ := p.ports.Load(number)
	found, _ := port.(*Port)
	return found
}

// Watch looks for the needles in requests on the listed connections, and on no others. Connections that are
// watched already go on to be. It may be called again at any time, and should be, to attach to new devices of
// the pod.
func (p *Port) Watch(needles []match.Needle, sockets map[bpf.FlowKey]sockdiag.Socket) error {
	p.sockets.Store(&sockets) // before there can be a packet to decide on
	return errors.Join(p.lookFor(needles, false), p.follow(sockets), p.pod.attach())
}

// WatchAll looks for the needles in requests on all connections to the port. The first data that is seen of a
// connection is taken for the beginning of a request. Connections are forgotten when they are reset, and when
// their clients have closed them in the usual way. Others are forgotten with the port only, so a port that is
// watched for long needs a sweep, which there is not yet.
func (p *Port) WatchAll(needles []match.Needle) error {
	return errors.Join(p.lookFor(needles, true), p.pod.attach())
}

// lookFor exchanges what the kernel looks for, if it is not the same.
func (p *Port) lookFor(needles []match.Needle, all bool) error {
	if p.inForce && p.all == all && slices.Equal(needles, p.needles) {
		return nil
	}
	a, err := newAutomaton(needles)
	if err != nil {
		return err
	}
	if all {
		a.AllFlows = 1
	}
	if err := p.pod.put(p.number, a); err != nil {
		return err
	}
	every := p.all
	p.inForce, p.all, p.needles = true, all, slices.Clone(needles)
	if every && !all { // the kernel has added connections that are not listed
		p.listed = nil
		return p.pod.program.forget(p.number)
	}
	return nil
}

// put makes an automaton the one of a port.
func (p *Pod) put(number uint16, a *bpf.Automaton) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	a.Generation = p.generation
	m, err := bpf.NewAutomaton(a)
	if err != nil {
		return err
	}
	defer m.Close() // the outer map keeps it
	if err := p.program.objs.Ports.Put(number, m); err != nil {
		return fmt.Errorf("exchange automaton of port %d: %w", number, err)
	}
	return nil
}

// follow makes the kernel watch the connections, except for those that it watches already, and forget those that
// are gone.
func (p *Port) follow(sockets map[bpf.FlowKey]sockdiag.Socket) error {
	flows := p.pod.program.objs.Flows
	has := maps.Clone(p.listed)
	if has == nil {
		has = map[bpf.FlowKey]sockdiag.Socket{}
	}
	defer func() { p.listed = has }()
	for key, s := range sockets {
		if was, ok := has[key]; ok && was.Cookie() == s.Cookie() {
			continue
		}
		if err := flows.Put(key, bpf.Flow{}); err != nil {
			return fmt.Errorf("watch connection from %s: %w", s.Remote, err)
		}
		has[key] = s
	}
	for key := range has {
		if _, ok := sockets[key]; ok {
			continue
		}
		if err := flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget connection: %w", err)
		}
		delete(has, key)
	}
	return nil
}

func (p *Pod) attach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.program.devices.attach(p.program.objs.Headwatch), p.program.count())
}

// Watched returns how many connections are watched by list.
func (p *Port) Watched() int { return len(p.listed) }

// Close lets all packets to the port pass. When it returns, the policy is no longer asked. The program goes with
// the pod's last port.
func (p *Port) Close() error {
	p.deciding.Lock()
	closed := p.closed
	p.closed = true
	p.deciding.Unlock()
	if closed {
		return nil
	}
	pod := p.pod
	pod.mu.Lock()
	defer pod.mu.Unlock()
	pod.ports.Delete(p.number)
	if pod.watched--; pod.watched == 0 {
		g := pod.program
		pod.program = nil
		return g.close()
	}
	var errs []error
	if p.inForce {
		errs = append(errs, pod.program.objs.Ports.Delete(p.number))
	}
	return errors.Join(append(errs, pod.program.forget(p.number), pod.program.count())...)
}

// verdict asks the policy.
func (p *Port) verdict(head match.Head) Verdict {
	p.deciding.Lock()
	defer p.deciding.Unlock()
	if p.closed {
		return Pass
	}
	return p.policy.Verdict(head)
}

// end ends the connection.
func (p *Port) end(key bpf.FlowKey) error {
	s, err := p.socket(key)
	if err != nil {
		return err
	}
	p.deciding.Lock()
	defer p.deciding.Unlock()
	if p.closed {
		return errClosed
	}
	return p.policy.End(&s)
}

var errClosed = errors.New("the port is no longer watched")

// socket returns the app's socket of a connection.
func (p *Port) socket(key bpf.FlowKey) (s sockdiag.Socket, err error) {
	if s, ok := (*p.sockets.Load())[key]; ok {
		return s, nil
	}
	// It is not listed, so all connections of the port are watched.
	err = p.pod.cfg.Namespace.Do(func() (err error) {
		s, err = sockdiag.Find(key.Ends())
		return err
	})
	return s, err
}
