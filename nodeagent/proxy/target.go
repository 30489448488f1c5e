// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// Rule is what one intercept asks of a target.
type Rule struct {
	InterceptUID, Namespace, Name string
	Called                        string // by its holder; empty: not known
	// TCP matches whole connections, when they are opened; a connected tcp rule has them before any
	// other rule. Else HTTP says which requests are matched.
	TCP  bool
	HTTP match.Rule
	// Connected is false while the laptop is away: the rule is then not tried.
	Connected bool
	// Wiretap leaves with the app what the rule says, and gives the laptop a copy.
	Wiretap bool
}

// called names the intercept as people know it.
func (r *Rule) called() string { return r.Namespace + "/" + cmp.Or(r.Called, r.Name) }

// Kubelet tells how the kubelet probes a target, and from which addresses. Probes are never given
// to a laptop.
type Kubelet struct {
	HostIPs   []netip.Addr
	HTTPPaths []string
	TCP, GRPC bool

	wait time.Duration // in place of probeWait, unless zero
}

// Stats is a target's state at one moment.
type Stats struct {
	Connections uint64 // served since the target was made
	Open        int    // being served now
	// of the connections that were looked into, those that began with a TLS handshake, and those
	// with HTTP
	TLS, HTTP  uint64
	Intercepts map[string]InterceptStats // by InterceptUID, of the rules in force
}

// InterceptStats counts what one intercept matched: connections of a tcp rule, requests of another.
type InterceptStats struct {
	Matched   uint64 // sent to the laptop
	Fallbacks uint64 // given to the app, since the laptop could not take them
	Answered  uint64 // of those matched; a connection is answered once the laptop has taken it
	Copies    tap.Counts
	// Unanswered counts the requests that the laptop did not answer, by reason.
	Unanswered [divert.Reasons]uint64
}

// Target is one steered port of one pod.
type Target struct {
	pod string
	app AppDialer

	connections atomic.Uint64
	open        atomic.Int64
	tls, http   atomic.Uint64
	rules       atomic.Pointer[rules]
	setting     sync.Mutex
}

// rules is what is in force at one moment. It is never changed.
type rules struct {
	intercepts []activeRule
	taps       []activeRule
	kubelet    Kubelet
}

type activeRule struct {
	Rule
	*intercept
}

// intercept is what lives as long as an intercept is among the rules.
type intercept struct {
	matched, fallbacks atomic.Uint64
	answered           atomic.Uint64
	unanswered         [divert.Reasons]atomic.Uint64
	logged             atomic.Int64 // when a fallback was last logged, in Unix nanoseconds

	mu      sync.Mutex
	ended   bool
	tunnels map[*tracked]struct{}
	tap     *tap.Tap // of a wiretap, since it was first needed
}

type tracked struct{ retire func() }

// NewTarget makes a target without rules: all connections go to the app. pod is "namespace/name".
func NewTarget(pod string, app AppDialer) *Target {
	t := &Target{pod: pod, app: app}
	t.rules.Store(&rules{})
	return t
}

// SetRules puts rules into force. When a request matches several rules, the first in the slice has
// it; wiretaps all get their copies. Open connections follow at their next request, wiretaps of
// whole connections at the next connection; connections that a removed tcp rule gave to a laptop
// are reset, requests on their way to a laptop finish. The counters of a rule live as long as its
// intercept is among the rules.
func (t *Target) SetRules(list []Rule, kubelet Kubelet) {
	t.setting.Lock()
	defer t.setting.Unlock()
	before := t.rules.Load()
	after := &rules{kubelet: kubelet}
	for _, r := range list {
		among, to := before.intercepts, &after.intercepts
		if r.Wiretap {
			among, to = before.taps, &after.taps
		}
		i := slices.IndexFunc(among,
			func(c activeRule) bool { return c.InterceptUID == r.InterceptUID && c.TCP == r.TCP })
		in := &intercept{tunnels: make(map[*tracked]struct{})}
		if i >= 0 {
			in = among[i].intercept
		}
		*to = append(*to, activeRule{Rule: r, intercept: in})
	}
	t.rules.Store(after)
	now := slices.Concat(after.intercepts, after.taps)
	for _, c := range slices.Concat(before.intercepts, before.taps) {
		if !slices.ContainsFunc(now, func(a activeRule) bool { return a.intercept == c.intercept }) {
			c.end()
		}
	}
}

// Match returns the UID of the intercept that a request matches now, or nothing if it is the app's.
func (t *Target) Match(head match.Head) (interceptUID string) {
	if c, away := t.rules.Load().http(head); c != nil && !away {
		return c.InterceptUID
	}
	return ""
}

// Stats returns the counters.
func (t *Target) Stats() Stats {
	s := Stats{Connections: t.connections.Load(), Open: int(t.open.Load()), TLS: t.tls.Load(),
		HTTP: t.http.Load(), Intercepts: make(map[string]InterceptStats)}
	for _, c := range t.rules.Load().intercepts {
		one := s.Intercepts[c.InterceptUID]
		one.Matched += c.matched.Load()
		one.Fallbacks += c.fallbacks.Load()
		one.Answered += c.answered.Load()
		for r := range one.Unanswered {
			one.Unanswered[r] += c.unanswered[r].Load()
		}
		s.Intercepts[c.InterceptUID] = one
	}
	for _, c := range t.rules.Load().taps {
		s.Intercepts[c.InterceptUID] = InterceptStats{Copies: c.copies()}
	}
	return s
}

// Idle says why a rule of that kind cannot match anything, if that is so.
func (s Stats) Idle(tcp bool) string {
	if tcp || s.TLS == 0 || s.HTTP > 0 {
		return ""
	}
	return "the port speaks TLS, so no request on it can match: use --mechanism tcp to take every connection"
}

// tcp returns the rule that has new connections, if there is one.
func (r *rules) tcp() *activeRule {
	for i := range r.intercepts {
		if c := &r.intercepts[i]; c.TCP && c.Connected {
			return c
		}
	}
	return nil
}

// awayTCP returns the rule that would have new connections if its laptop were there.
func (r *rules) awayTCP() *activeRule {
	i := slices.IndexFunc(r.intercepts, func(c activeRule) bool { return c.TCP && !c.Connected })
	if i < 0 {
		return nil
	}
	return &r.intercepts[i]
}

// http returns the rule that has a request, if there is one. away says that the rule's laptop is not
// there, so that the app has the request.
func (r *rules) http(head match.Head) (rule *activeRule, away bool) {
	for i := range r.intercepts {
		c := &r.intercepts[i]
		if c.TCP || !c.Connected && rule != nil || !c.HTTP.Match(head) {
			continue
		}
		if rule == nil && isKubelet(head) {
			return nil, false
		}
		if rule = c; c.Connected {
			return rule, false
		}
	}
	return rule, rule != nil
}

// matchable reports whether a request can be matched at present.
func (r *rules) matchable() bool {
	return slices.ContainsFunc(r.intercepts, func(c activeRule) bool { return !c.TCP && c.Connected })
}

// wholeOnly reports whether there are rules, none of which looks at requests.
func (r *rules) wholeOnly() bool {
	looks := func(c activeRule) bool { return !c.TCP }
	return len(r.intercepts) > 0 && !slices.ContainsFunc(r.intercepts, looks) && !slices.ContainsFunc(r.taps, looks)
}

// quietFor is how long no other fallback of an intercept is logged.
const quietFor = 10 * time.Second

func (in *intercept) worthLogging(now time.Time) bool {
	last := in.logged.Load()
	return now.UnixNano()-last >= int64(quietFor) && in.logged.CompareAndSwap(last, now.UnixNano())
}

// track adds a tunnel, of which retire is called when the intercept ends.
func (in *intercept) track(retire func()) (untrack func()) {
	t := &tracked{retire}
	in.mu.Lock()
	ended := in.ended
	in.tunnels[t] = struct{}{}
	in.mu.Unlock()
	if ended {
		retire()
	}
	return func() {
		in.mu.Lock()
		delete(in.tunnels, t)
		in.mu.Unlock()
	}
}

func (in *intercept) end() {
	in.mu.Lock()
	in.ended = true
	all := make([]*tracked, 0, len(in.tunnels))
	for t := range in.tunnels {
		all = append(all, t)
	}
	tap := in.tap
	in.mu.Unlock()
	if tap != nil {
		tap.End()
	}
	for _, t := range all {
		t.retire()
	}
}
