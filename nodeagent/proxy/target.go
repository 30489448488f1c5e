package proxy

import (
	"net/netip"

	"sidestep.dev/sidestep/internal/match"
)

// Rule is one intercept's claim on a target.
type Rule struct {
	InterceptUID, Namespace, Name string
	// TCP claims whole connections; else HTTP says which requests are claimed.
	TCP  bool
	HTTP match.Rule
	// Connected is false while the laptop is away: the rule is then not tried.
	Connected bool
}

// Kubelet tells how the kubelet probes a target, and from which addresses. Probes are never given to a laptop.
type Kubelet struct {
	HostIPs   []netip.Addr
	HTTPPaths []string
	TCP, GRPC bool
}

// Stats is a target's state at one moment.
type Stats struct {
	Connections uint64                    // served since the target was made
	Open        int                       // being served now
	Intercepts  map[string]InterceptStats // by InterceptUID, of the rules in force
}

// InterceptStats counts what one intercept claimed: connections of a tcp rule, requests of another.
type InterceptStats struct {
	Matched   uint64 // sent to the laptop
	Fallbacks uint64 // given to the app, since the laptop could not take them
}

// Target is one steered port of one pod.
type Target struct {
	pod string
	app AppDialer
}

// NewTarget makes a target without rules: all connections go to the app. pod is "namespace/name".
func NewTarget(pod string, app AppDialer) *Target {
	return &Target{pod: pod, app: app}
}

// SetRules puts rules into force. When several rules claim a request, the first in the slice has it. Open connections
// follow at their next request; connections that a removed tcp rule gave to a laptop are reset, requests on their way to a
// laptop finish. The counters of a rule live as long as its intercept is among the rules.
func (t *Target) SetRules(rules []Rule, kubelet Kubelet) {}

// Stats returns the counters.
func (t *Target) Stats() Stats { return Stats{} }
