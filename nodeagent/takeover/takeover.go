// SPDX-License-Identifier: Apache-2.0

// Package takeover is the policy for connections that are older than the intercept of their port. The kernel
// leaves them with the app, whatever new connections are steered to.
//
// Where an intercept takes single requests, package headwatch watches these connections and no others. For a
// request that is the intercept's, its connection is ended before the app has seen it: the client gets a reset,
// tries again, and its new connection is steered. Where an intercept takes whole connections, those that are
// idle are ended.
//
// All other connections live on. When something fails here, they do too.
package takeover

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/headwatch"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

const (
	// idleFor is how long a connection has had no data before it counts as idle.
	idleFor = 200 * time.Millisecond
	// endingFor is how long to look for connections that have become idle.
	endingFor = 10 * time.Second
	// watchEvery is the pause between looks at which connections are still there, once nothing new
	// is to be expected.
	watchEvery = 10 * time.Second
)

// looks are when connections are listed after steering began. What was on its way then appears a little later,
// or when a lost packet of its handshake was repeated, after one, three and seven seconds. For each look the
// kernel walks through all connections of the machine.
var looks = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second, 3 * time.Second,
	7 * time.Second, endingFor}

// endEvery is the pause between looks for connections that have become idle and are to be ended.
const endEvery = time.Second

// Namespace is a pod's network namespace.
type Namespace interface {
	Inode() uint64
	Do(fn func() error) error
}

// Config describes a port.
type Config struct {
	Namespace Namespace
	Port      uint16
	// Watch watches the pod's connections, for all of its ports. nil means that this port has a program of its own.
	Watch *headwatch.Pod
	// Claims returns the UID of the intercept that has a request, as far as is known now.
	Claims func(head match.Head) (intercept string)
	// Steering reports whether new connections are steered at this moment: the node agent may have the kernel pass
	// them all to the app for a while. nil means that they are, once Steered was called.
	Steering func() bool
	Log      *slog.Logger
	// Counters may be nil.
	Counters *Counters
	// clsact attaches as before Linux 6.6.
	clsact bool
	// destroy ends a connection; nil means that the kernel is asked.
	destroy func(*sockdiag.Socket) error
	// hold is the timeout of queued packets. hold and idle differ from headwatch.Timeout and idleFor in tests only.
	hold, idle time.Duration
}

// Counters are what was done on a node.
type Counters struct {
	// Packets that were queued, and what became of them. Those that timed out or had no room may have been of an
	// intercept's requests, which went to the app.
	headwatch.Counters
	TakenOver atomic.Uint64 // connections ended because of a request
	Ended     atomic.Uint64 // connections ended because they were idle, or all were to be
	// LeftUndestroyed is an intercept's requests that went to the app, since the kernel did not end their
	// connections.
	LeftUndestroyed atomic.Uint64
	Watched         atomic.Int64 // connections that are being watched
}

// Port deals with the older connections of one port of one pod.
type Port struct {
	cfg     Config
	over    chan struct{} // closed at the end
	wake    chan struct{}
	running sync.WaitGroup
	watched atomic.Pointer[[]Rule] // those that Verdict goes by; what it points to is never changed
	steered atomic.Bool

	mu      sync.Mutex // held while the kernel is asked, so policy does not take it
	rules   []Rule
	tooMany error                // why the rules cannot be looked for in requests
	done    map[string]bool      // intercepts whose connections have been ended, or are being
	ending  map[string]time.Time // until when
	older   map[bpf.FlowKey]sockdiag.Socket
	heads   *headwatch.Port // nil unless something is watched
	began   time.Time       // of the present series of looks; zero without one
	closed  bool
	counted int // among the watched ones of the node
}

// Open prepares for the port. It must be called before new connections are steered: what is open then is older.
func Open(cfg Config) (*Port, error) {
	if cfg.Counters == nil {
		cfg.Counters = &Counters{}
	}
	p := &Port{
		cfg: cfg, over: make(chan struct{}), wake: make(chan struct{}, 1),
		done: map[string]bool{}, ending: map[string]time.Time{},
	}
	p.watched.Store(&[]Rule{})
	p.cfg.idle = cmp.Or(cfg.idle, idleFor)
	if cfg.Watch == nil {
		p.cfg.Watch = headwatch.NewPod(headwatch.Config{Namespace: cfg.Namespace, Log: cfg.Log,
			Counters: &cfg.Counters.Counters, Timeout: cfg.hold, Clsact: cfg.clsact})
	}
	if cfg.destroy == nil {
		p.cfg.destroy = sockdiag.Destroy
		if err := cfg.Namespace.Do(sockdiag.CanDestroy); err != nil {
			return nil, err
		}
	}
	if err := headwatch.Sweep(cfg.Namespace); err != nil {
		cfg.Log.Warn("open connections", "port", cfg.Port, "error", err)
	}
	return p, nil
}

// SetRules sets what is wanted from now on. When it returns, connections are watched. Those that are to be ended
// are ended once Steered was called.
func (p *Port) SetRules(rules []Rule) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.rules = slices.Clone(rules)
	for uid := range p.done {
		if !slices.ContainsFunc(rules, func(r Rule) bool { return r.Intercept == uid }) {
			delete(p.done, uid)
			delete(p.ending, uid)
		}
	}
	for i := range rules {
		r := &rules[i]
		if !p.done[r.Intercept] && r.ends() != None {
			p.done[r.Intercept] = true
			p.ending[r.Intercept] = time.Now().Add(endingFor)
		}
	}
	p.tooMany = headwatch.Check(needles(rules))
	if !p.wanted() {
		p.watched.Store(&[]Rule{})
		return errors.Join(p.tooMany, p.unwatch())
	}
	if err := p.look(); err != nil {
		return err
	}
	p.keepLooking()
	return p.tooMany
}

// Steered is called when new connections are steered, so that older ones may be taken over, or ended.
func (p *Port) Steered() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steered.Store(true)
	if len(p.ending) == 0 || p.closed {
		return nil
	}
	if err := p.look(); err != nil {
		return err
	}
	p.end()
	return nil
}

// steers reports whether a client whose connection is ended comes to the node agent when it tries again.
func (p *Port) steers() bool { return p.steered.Load() && (p.cfg.Steering == nil || p.cfg.Steering()) }

// wanted reports whether any rule cares about older connections. p.mu must be held.
func (p *Port) wanted() bool { return len(p.ending) > 0 || p.watching() }

func (p *Port) watching() bool {
	return p.tooMany == nil && slices.ContainsFunc(p.rules, func(r Rule) bool { return r.watches() })
}

// keepLooking lists connections for as long as there may be older ones. p.mu must be held.
func (p *Port) keepLooking() {
	running := !p.began.IsZero()
	p.began = time.Now()
	if running {
		select {
		case p.wake <- struct{}{}:
		default:
		}
		return
	}
	p.running.Go(func() {
		for p.pause() && p.lookAgain() {
		}
	})
}

// pause waits until the next look is due. It returns false at the end.
func (p *Port) pause() bool {
	p.mu.Lock()
	since, ending := time.Since(p.began), len(p.ending) > 0
	p.mu.Unlock()
	wait := watchEvery
	for _, at := range looks {
		if since < at {
			wait = at - since
			break
		}
	}
	if ending {
		wait = min(wait, endEvery)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.over:
		return false
	case <-p.wake:
		return true
	case <-timer.C:
		return true
	}
}

// lookAgain looks, and reports whether to go on.
func (p *Port) lookAgain() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	if err := p.look(); err != nil {
		p.cfg.Log.Debug("look at older connections", "port", p.cfg.Port, "error", err)
		return true
	}
	p.end()
	// By then whatever was on its way when steering began has arrived.
	if settled := time.Since(p.began) >= endingFor; !settled || len(p.older) > 0 && p.wanted() {
		return true
	}
	if err := p.unwatch(); err != nil {
		p.cfg.Log.Warn("stop watching older connections", "port", p.cfg.Port, "error", err)
	}
	p.began = time.Time{}
	return false
}

// look lists the connections, and watches them if that is wanted. p.mu must be held.
func (p *Port) look() error {
	var sockets []sockdiag.Socket
	err := p.cfg.Namespace.Do(func() (err error) {
		sockets, err = sockdiag.List(p.cfg.Port)
		return err
	})
	if err != nil {
		return err
	}
	p.older = map[bpf.FlowKey]sockdiag.Socket{}
	for _, s := range sockets {
		if !s.Marked && !private(&s) {
			p.older[bpf.NewFlowKey(s.Remote, s.Local)] = s
		}
	}
	rules := p.rules // SetRules exchanges the slice
	p.watched.Store(&rules)
	if !p.watching() {
		return p.unwatch()
	}
	if p.heads == nil {
		if len(p.older) == 0 {
			return nil
		}
		if p.heads, err = p.cfg.Watch.Open(p.cfg.Port, policy{p}); err != nil {
			return err
		}
	}
	p.report(len(p.older))
	return p.heads.Watch(needles(p.rules), p.older)
}

// report counts the connections that are watched. p.mu must be held.
func (p *Port) report(n int) {
	p.cfg.Counters.Watched.Add(int64(n - p.counted))
	p.counted = n
}

// private reports whether a connection is never steered: those of the pod with itself, as the node agent's own to
// the app, and those on loopback.
func private(s *sockdiag.Socket) bool {
	return s.Remote.Addr() == s.Local.Addr() || s.Local.Addr().IsLoopback()
}

// end ends what is to be ended, if that is of use now. p.mu must be held.
func (p *Port) end() {
	if !p.steers() {
		return
	}
	now := time.Now()
	all, idle := false, false
	for i := range p.rules {
		r := &p.rules[i]
		until, ok := p.ending[r.Intercept]
		switch {
		case !ok:
		case r.ends() == All:
			all = true
			delete(p.ending, r.Intercept)
		case now.After(until):
			delete(p.ending, r.Intercept)
		default:
			idle = true
		}
	}
	for _, s := range p.older {
		if !all && !(idle && s.Unread == 0 && s.Unsent == 0 && s.Quiet >= p.cfg.idle) {
			continue
		}
		if err := p.cfg.Namespace.Do(func() error { return p.cfg.destroy(&s) }); err != nil {
			p.cfg.Log.Warn("an older connection lives on", "error", err)
			continue
		}
		p.cfg.Counters.Ended.Add(1)
	}
}

// unwatch stops watching all connections. p.mu must be held.
func (p *Port) unwatch() error {
	was := p.heads
	if was == nil {
		return nil
	}
	p.heads = nil
	p.report(0)
	return was.Close()
}

// policy is what headwatch asks about requests on older connections.
type policy struct{ *Port }

// Verdict returns headwatch.End for requests that are to be taken over. There are none while new connections are
// not steered: the client's next one would come to the app as well.
func (p policy) Verdict(head match.Head) headwatch.Verdict {
	if !p.steers() {
		return headwatch.Pass
	}
	intercept := p.cfg.Claims(head)
	if intercept != "" && slices.ContainsFunc(*p.watched.Load(), func(r Rule) bool {
		return r.Intercept == intercept && r.watches()
	}) {
		return headwatch.End
	}
	return headwatch.Pass
}

func (p policy) End(s *sockdiag.Socket) error {
	if err := p.cfg.Namespace.Do(func() error { return p.cfg.destroy(s) }); err != nil {
		p.cfg.Counters.LeftUndestroyed.Add(1)
		return err
	}
	p.cfg.Counters.TakenOver.Add(1)
	p.cfg.Log.Debug("older connection taken over", "remote", s.Remote, "local", s.Local)
	return nil
}

// Watched returns how many connections are being watched.
func (p *Port) Watched() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counted
}

// Close leaves all connections alone.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.over)
	err := p.unwatch()
	p.mu.Unlock()
	p.running.Wait()
	return err
}
