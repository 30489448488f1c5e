// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// A pod that cannot be opened is tried again, after pauses that double from retryFirst to retryMax.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 5 * time.Second
	// retryLasting is the pause from which on a problem is reported, and logged, as one that lasts.
	retryLasting = time.Second
)

// pod is one pod that is assigned or being let go.
type pod struct {
	set       *Set
	uid, name string // name is "namespace/name"
	log       *slog.Logger
	wake      chan struct{}

	mu      sync.Mutex
	desired *agentpb.Pod // nil: let go
	site    *site        // nil until opened; only run changes it
	problem string       // why there is no site, or not all of it
	lasting bool         // the problem is not one of setting up
	done    bool         // tried to reach the desired state
	status  status
	asked   bool // all probes are to be made at once
	fresh   bool // those that have never been made are
	looks   bool // connections that are open are to be looked for anew
	visits  map[*visit]struct{}

	// Used by run alone.
	retry   time.Duration
	applied *agentpb.Pod
	probed  time.Time
	turn    int // of the claims that are proved again
}

func newPod(s *Set, want *agentpb.Pod) *pod {
	name := want.GetNamespace() + "/" + want.GetName()
	return &pod{
		set: s, uid: want.GetUid(), name: name, wake: make(chan struct{}, 1),
		log: s.cfg.Log.With("pod", name, "uid", want.GetUid()), problem: "being set up",
	}
}

func (p *pod) want(want *agentpb.Pod) {
	p.mu.Lock()
	same := equal(p.desired, want)
	if !same {
		p.status.change(p.desired, want)
		p.desired = want
	}
	p.endVisits()
	p.mu.Unlock()
	if !same || want == nil {
		p.poke()
	}
}

func (p *pod) wanted() *agentpb.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.desired
}

func (p *pod) reprobe() {
	p.mu.Lock()
	p.asked = true
	p.mu.Unlock()
	p.poke()
}

func (p *pod) lookAgain() {
	p.mu.Lock()
	p.looks = true
	p.mu.Unlock()
	p.poke()
}

func (p *pod) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pod) tried() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done || p.desired == nil
}

// settled gives the namespace of the pod, or says that it is not known.
func (p *pod) settled() (inode uint64, settled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.site != nil {
		return p.site.ns.Inode(), true
	}
	return 0, p.desired == nil || p.set.refusal(p.desired) != nil
}

func (p *pod) responsive() error {
	p.mu.Lock()
	s := p.site
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.responsive()
}

// run works towards the desired state until the pod is let go.
func (p *pod) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.set.ctx.Done():
			p.abandon()
			p.set.forget(p)
			return
		}
		pause, gone := p.step()
		if gone && p.set.forget(p) {
			return
		}
		timer.Reset(pause)
	}
}

// step does what can be done now. It says when to look again, or that the pod has been let go.
func (p *pod) step() (pause time.Duration, gone bool) {
	want := p.wanted()
	if p.site != nil && !p.set.cfg.Finder.Alive(p.uid, p.site.ns.ID()) {
		p.log.Info("pod is gone from the node")
		p.abandon()
	}
	if len(want.GetTargets()) == 0 && len(want.GetUdpTargets()) == 0 {
		return p.letGo(want == nil)
	}
	if isClosed(p.set.Superseded()) {
		p.yieldOlder()
		// another agent does what is wanted, which this one may no longer know
		return p.set.cfg.WatchEvery, false
	}
	p.mu.Lock()
	looks := p.looks
	p.looks = false
	p.mu.Unlock()
	if looks {
		p.yieldOlder()
	}
	err := p.establish(want)
	p.settle(err, p.set.refusal(want) != nil || p.retry >= retryLasting)
	if err == nil {
		p.retry = 0
		p.probe(want)
		return p.set.cfg.WatchEvery, false
	}
	if errors.Is(err, steer.ErrSuperseded) {
		p.set.StandBy()
		return p.set.cfg.WatchEvery, false
	}
	before := p.retry
	if p.retry = min(max(2*p.retry, retryFirst), retryMax); p.retry >= retryLasting && before < retryLasting {
		p.log.Warn("pod cannot be steered", "error", err)
	}
	return p.retry, false
}

// settle notes the outcome of a try, and whether a problem is likely to stay.
func (p *pod) settle(err error, lasting bool) {
	problem := ""
	if err != nil {
		problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	p.mu.Lock()
	lasting = lasting && err != nil
	differs := p.problem != problem || p.lasting != lasting || !p.done
	p.problem, p.lasting, p.done = problem, lasting, true
	p.mu.Unlock()
	if differs {
		p.set.notify()
	}
}

// establish makes everything as wanted.
func (p *pod) establish(want *agentpb.Pod) error {
	if err := p.set.refusal(want); err != nil {
		p.abandon()
		return err
	}
	if p.site == nil {
		s, err := p.open(want)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.site, p.status = s, status{}
		p.mu.Unlock()
		p.applied = nil
	}
	if equal(p.applied, want) && !p.site.lingering() {
		return p.site.attach() // mends what others have broken
	}
	rejected, err := p.site.apply(want)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.status.keep(want, rejected)
	altered := len(p.status.altered) > 0 && p.desired == want
	if altered {
		p.status.altered = nil
	}
	p.fresh = true
	p.mu.Unlock()
	if altered {
		p.set.notify()
	}
	p.applied = want
	return nil
}

func (p *pod) open(want *agentpb.Pod) (*site, error) {
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
	s, err := openSite(p, ns, ips, want.GetHostNetwork())
	if err != nil {
		p.set.vacate(p)
		return nil, errors.Join(err, ns.Close())
	}
	return s, nil
}

// letGo gives new connections to the app, and closes the listeners when no more can be on their way
// to them.
func (p *pod) letGo(forever bool) (pause time.Duration, gone bool) {
	p.settle(nil, false)
	if p.site == nil {
		return time.Hour, forever
	}
	left, err := p.site.release(p.set.cfg.Linger)
	if err != nil {
		p.log.Error("pod cannot be let go", "error", err)
		return retryMax, false
	}
	if left > 0 {
		return min(left, p.set.cfg.WatchEvery), false
	}
	p.log.Info("pod let go")
	p.drop().retire()
	p.set.vacate(p)
	return time.Hour, forever
}

// abandon closes everything of the pod at once: it is gone, or the agent ends.
func (p *pod) abandon() {
	if s := p.drop(); s != nil {
		if err := s.abort(); err != nil {
			p.log.Warn("something of the pod could not be closed", "error", err)
		}
	}
	p.set.vacate(p)
}

func (p *pod) drop() *site {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.site
	p.site, p.applied, p.status = nil, nil, status{}
	return s
}

// refusal says why a pod can never be steered.
func (s *Set) refusal(want *agentpb.Pod) error {
	if want.GetHostNetwork() {
		if err := s.onHostNetwork(); err != nil {
			return err
		}
	}
	class := strings.ToLower(want.GetRuntimeClass())
	for _, sandbox := range []string{"kata", "gvisor", "runsc"} {
		if strings.Contains(class, sandbox) {
			return fmt.Errorf("the pod runs in a sandbox with a network stack of its own (runtime class %q), which the node cannot steer: such pods cannot be intercepted", want.GetRuntimeClass())
		}
	}
	return nil
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
