// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// A pod that cannot be opened is tried again, after pauses that double from retryFirst to retryMax.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 5 * time.Second
	// lasting is after how long a problem is reported, and logged, as one that lasts.
	lasting = time.Second
)

// pod is one pod that is assigned or being drained.
type pod struct {
	set       *Set
	uid, name string // name is "namespace/name"
	log       *slog.Logger
	wake      chan struct{}

	mu sync.Mutex
	state

	// Used by run alone.
	retry  backoff.Backoff
	failed time.Time // since when it cannot be steered; zero if it can
	said   bool      // that this lasts
	probed time.Time
	turn   int // of the proofs that are repeated
}

func newPod(s *Set, want *agentpb.Pod) *pod {
	name := want.GetNamespace() + "/" + want.GetName()
	return &pod{
		set: s, uid: want.GetUid(), name: name, wake: make(chan struct{}, 1),
		log:   s.cfg.Log.With("pod", name, "uid", want.GetUid()),
		state: state{phase: pending, problem: settingUp},
		retry: backoff.Backoff{First: retryFirst, Most: retryMax},
	}
}

// assign changes what is wanted of the pod; nil is nothing.
func (p *pod) assign(want *agentpb.Pod) {
	p.mu.Lock()
	same := equal(p.wanted, want)
	if !same {
		p.proofs.change(p.wanted, want)
		p.wanted = want
	}
	p.mu.Unlock()
	if !same || want == nil {
		p.poke()
	}
}

func (p *pod) assigned() *agentpb.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted
}

// reprobe makes all proofs due.
func (p *pod) reprobe() {
	p.mu.Lock()
	p.due.all = true
	p.mu.Unlock()
	p.poke()
}

// restart establishes everything anew, since new connections have gone past this agent.
func (p *pod) restart() {
	p.mu.Lock()
	p.missed = true
	p.mu.Unlock()
	p.poke()
}

func (p *pod) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// ready reports whether what is wanted was tried at least once.
func (p *pod) ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tried || p.wanted == nil
}

// over reports whether nothing is open or wanted.
func (p *pod) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted == nil && p.opened == nil
}

// settled returns the namespace of the pod, or false if it is not known yet.
func (p *pod) settled() (inode uint64, settled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened != nil {
		return p.opened.at.Namespace.Inode(), true
	}
	return 0, p.wanted == nil || p.set.refusal(p.wanted) != nil
}

func (p *pod) responsive() error {
	p.mu.Lock()
	o := p.opened
	p.mu.Unlock()
	if o == nil {
		return nil
	}
	return o.responsive()
}

// run works towards what is wanted until the pod is forgotten.
func (p *pod) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.set.ctx.Done():
			p.abort()
			p.set.forget(p)
			return
		}
		pause := p.step()
		if p.set.forget(p) {
			return
		}
		timer.Reset(pause)
	}
}

// step takes the next transition, and returns when to look for another.
func (p *pod) step() (pause time.Duration) {
	want, refusal := p.assigned(), error(nil)
	now := facts{wanted: wantsTargets(want), superseded: p.set.superseded.is()}
	if p.opened != nil {
		now.gone = !p.set.cfg.Finder.Alive(p.uid, p.opened.at.Namespace.ID())
		now.drained = time.Since(p.opened.drained) >= p.set.cfg.Linger
	}
	if now.wanted {
		refusal = p.set.refusal(want)
		now.refused = refusal != nil
	}
	do, to := p.phase.next(now)
	switch do {
	case abort:
		if now.gone {
			p.log.Info("pod is gone from the node")
		}
		p.abort()
		return 0
	case yield:
		p.opened.notify(false)
		p.enter(to)
		return p.set.cfg.WatchEvery
	case drain:
		p.settle(nil, false)
		p.disprove()
		if err := p.opened.drain(); err != nil {
			p.log.Error("pod cannot be drained", "error", err)
			return retryMax
		}
		p.enter(to)
		return min(p.set.cfg.Linger, p.set.cfg.WatchEvery)
	case finish:
		p.log.Info("pod drained")
		p.take().finish()
		p.set.release(p)
		return time.Hour
	case wait:
		return p.wait(now, refusal)
	}
	err := p.establish(do, want)
	if err == nil {
		p.enter(to)
	}
	return p.outcome(err, want)
}

// wait returns how long there is nothing to do.
func (p *pod) wait(now facts, refusal error) time.Duration {
	switch {
	case now.superseded && now.wanted:
		return p.set.cfg.WatchEvery
	case p.phase == draining:
		return min(p.set.cfg.Linger-time.Since(p.opened.drained), p.set.cfg.WatchEvery)
	case refusal != nil:
		return p.fail(refusal, true)
	}
	p.settle(nil, false)
	return time.Hour
}

func wantsTargets(want *agentpb.Pod) bool {
	return len(want.GetTargets())+len(want.GetUdpTargets()) > 0
}

// enter notes the phase in which an action has left the pod.
func (p *pod) enter(to phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase = to; to == standby || to == draining {
		p.applied = nil // whatever is wanted next is established anew
	}
}

// disprove forgets what was proved.
func (p *pod) disprove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proofs = proofs{}
}

// settle notes the outcome of a step.
func (p *pod) settle(err error, lasting bool) {
	p.mu.Lock()
	news := p.state.settle(err, lasting)
	p.mu.Unlock()
	if news {
		p.set.notify()
	}
}

// outcome notes how establishing has ended, and makes the proofs that are due.
func (p *pod) outcome(err error, want *agentpb.Pod) (pause time.Duration) {
	switch {
	case err == nil:
		p.settle(nil, false)
		p.retry.Reset()
		p.failed, p.said = time.Time{}, false
		p.prove(want)
		return p.set.cfg.WatchEvery
	case errors.Is(err, steer.ErrSuperseded):
		p.settle(err, false)
		p.set.StandBy()
		return p.set.cfg.WatchEvery
	}
	return p.fail(err, false)
}

// fail notes a problem, which stays if it is a refusal. It returns when to try again.
func (p *pod) fail(err error, refused bool) (pause time.Duration) {
	now := time.Now()
	if p.failed.IsZero() {
		p.failed = now
	}
	lasts := refused || now.Sub(p.failed) >= lasting
	if lasts && !p.said {
		p.log.Warn("pod cannot be steered", "error", err)
	}
	p.said = lasts
	p.settle(err, lasts)
	return p.retry.Next()
}

// establish makes everything as wanted.
func (p *pod) establish(do action, want *agentpb.Pod) error {
	if do == open {
		o, err := p.open(want)
		if err != nil {
			return err
		}
		p.mu.Lock()
		// Open, and steering as soon as it is applied: whatever fails from here on is mended or drained.
		p.phase, p.opened, p.applied, p.proofs = steering, o, nil, proofs{}
		p.mu.Unlock()
	}
	p.mu.Lock()
	missed := p.missed
	p.missed = false
	p.mu.Unlock()
	if missed {
		p.opened.notify(false)
		p.applied = nil
	}
	if equal(p.applied, want) && maps.Equal(p.opened.barred, p.opened.barredOf(want)) {
		return p.opened.attach() // mends what others have broken
	}
	rejected, err := p.opened.apply(want)
	if err != nil {
		p.applied = nil
		return err
	}
	p.mu.Lock()
	p.proofs.keep(want, rejected)
	altered := len(p.proofs.altered) > 0 && p.wanted == want
	if altered {
		p.proofs.altered = nil
	}
	p.due.fresh = true
	p.applied = want
	p.mu.Unlock()
	if altered {
		p.set.notify()
	}
	return nil
}

// open finds the pod and opens what is needed to steer it.
func (p *pod) open(want *agentpb.Pod) (*opened, error) {
	ips, err := addresses(want.GetIps())
	if err != nil {
		return nil, fmt.Errorf("read the pod's addresses: %w", err)
	}
	ns, err := p.set.cfg.Finder.Find(p.uid, ips)
	if err != nil {
		return nil, fmt.Errorf("find the pod's network namespace: %w", err)
	}
	if want.GetHostNetwork() {
		if err := p.set.occupy(p, ns.ID()); err != nil {
			return nil, errors.Join(err, ns.Close())
		}
	}
	o, err := openPod(p, ns, ips, want.GetHostNetwork())
	if err != nil {
		p.set.release(p)
		return nil, errors.Join(err, ns.Close())
	}
	return o, nil
}

// abort closes everything of the pod at once: it is gone or refused, or the agent ends.
func (p *pod) abort() {
	if o := p.take(); o != nil {
		if err := o.abort(); err != nil {
			p.log.Warn("something of the pod could not be closed", "error", err)
		}
	}
	p.set.release(p)
}

// take takes from the pod what is open, so that it is pending.
func (p *pod) take() *opened {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.opened
	p.phase, p.opened, p.applied, p.proofs = pending, nil, nil, proofs{}
	return o
}

func addresses(texts []string) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		ips = append(ips, ip.Unmap())
	}
	if len(ips) == 0 {
		return nil, errors.New("it has none")
	}
	return ips, nil
}

func equal(a, b *agentpb.Pod) bool { return (a == nil) == (b == nil) && proto.Equal(a, b) }
