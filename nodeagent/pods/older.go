// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// Takeover deals with connections that are older than the steering of their port.
type Takeover interface {
	// Open is for one port of a pod. claims gives the UID of the intercept that has a request.
	Open(ns Namespace, pod string, port uint16, claims func(head match.Head) string) (Older, error)
}

// Older is the older connections of one port: see takeover.Port.
type Older interface {
	SetRules([]takeover.Rule) error
	Steered() error
	Close() error
}

// lookBack deals with the connections that are open, before new ones are steered. When that fails
// they stay with the app, and steering goes on.
func (s *site) lookBack(t *agentpb.Target, rejected map[claim]string) {
	port := uint16(t.GetPort())
	// for another port's sake the kernel need not go through all connections again
	if proto.Equal(s.lookedBack[port], t) {
		return
	}
	rules := olderRules(t, rejected)
	err := s.setOlder(port, rules)
	if delete(s.lookedBack, port); err == nil {
		s.lookedBack[port] = t
	}
	problem := ""
	if err != nil && len(rules) > 0 {
		problem = fmt.Sprintf("connections to port %d that are open already stay with the app: %v", port, err)
	}
	s.mu.Lock()
	differs := problem != s.olderProblems[port]
	s.olderProblems[port] = problem
	s.mu.Unlock()
	if differs && problem != "" {
		s.pod.log.Warn(problem)
	}
}

func (s *site) setOlder(port uint16, rules []takeover.Rule) error {
	o := s.older[port]
	if o == nil {
		// The interfaces of a node carry everybody's traffic, which is nothing to look into for one
		// pod's sake.
		if len(rules) == 0 || s.pod.set.cfg.Takeover == nil || s.hostNetwork {
			return nil
		}
		var err error
		if o, err = s.pod.set.cfg.Takeover.Open(s.ns, s.pod.name, port, s.target(port).Match); err != nil {
			return err
		}
		s.older[port] = o
	}
	return o.SetRules(rules)
}

// olderSteered says that new connections are steered now.
func (s *site) olderSteered() {
	for port, o := range s.older {
		if err := o.Steered(); err != nil {
			s.pod.log.Warn("connections that are open already stay with the app", "port", port, "error", err)
		}
	}
}

func (s *site) forgetOlder(port uint16) error {
	delete(s.lookedBack, port)
	o := s.older[port]
	if o == nil {
		return nil
	}
	delete(s.older, port)
	s.mu.Lock()
	delete(s.olderProblems, port)
	s.mu.Unlock()
	return o.Close()
}

// yieldOlder forgets which connections were open before. When the pod is established again, it
// begins anew.
func (p *pod) yieldOlder() {
	if p.site == nil || len(p.site.older) == 0 {
		return
	}
	if err := p.site.forgetAllOlder(); err != nil {
		p.log.Warn("stop watching open connections", "error", err)
	}
	p.applied = nil
}

func (s *site) forgetAllOlder() error {
	var errs []error
	for port := range s.older {
		errs = append(errs, s.forgetOlder(port))
	}
	return errors.Join(errs...)
}

// olderProblem says why the open connections of a port are left alone, if that is not what the rule
// wants. p.mu must be held.
func (p *pod) olderProblem(port uint16, r *agentpb.Rule) string {
	s := p.site
	if s == nil || r.GetExisting() == takeover.None || !r.GetConnected() {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.olderProblems[port]
}

// olderRules are the rules of a target that want something of open connections. Those whose laptop
// is away do not.
func olderRules(t *agentpb.Target, rejected map[claim]string) []takeover.Rule {
	var rules []takeover.Rule
	for _, r := range t.GetRules() {
		_, bad := rejected[claim{port: uint16(t.GetPort()), intercept: r.GetInterceptUid()}]
		if bad || !r.GetConnected() || r.GetExisting() == takeover.None {
			continue
		}
		rule := takeover.Rule{Intercept: r.GetInterceptUid(), TCP: r.GetTcp(), Existing: r.GetExisting()}
		var err error
		if rule.HTTP, err = match.FromProto(r.GetHttp()); err != nil {
			continue // rejected
		}
		rules = append(rules, rule)
	}
	return rules
}
