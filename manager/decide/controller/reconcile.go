// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/decide/claims"
	"sidestep.dev/sidestep/manager/decide/plan"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

// entry is what the controller remembers about one intercept.
type entry struct {
	uid        types.UID
	intercept  *v1alpha1.Intercept
	rule       match.Rule
	ruleErr    error
	resolution *resolve.Resolution // the last successful one
	generation int64               // of the intercept at that resolution
	away       time.Time           // since when the laptop is disconnected; zero: it is connected
	granted    grant               // the port that it has, also while it moves
	unanswered tally
	judged     access.Judgement // when its laptop was last connected
}

func newEntry(ic *v1alpha1.Intercept) *entry {
	e := &entry{uid: ic.UID}
	if ic.Spec.Mechanism == v1alpha1.MechanismHTTP {
		e.rule, e.ruleErr = match.FromSpec(ic.Spec.HTTP) // it cannot change, so it is compiled once
	}
	return e
}

// reconcile decides about one intercept and applies what follows. A panic ends the decision about
// this intercept alone: no object that a developer may create must stop those of others.
func (c *Controller) reconcile(k types.NamespacedName) {
	defer func() {
		if p := recover(); p != nil {
			c.panics.Inc()
			c.cfg.Log.Error("decision about an intercept panicked", "namespace", k.Namespace, "name", k.Name,
				"panic", p, "stack", string(debug.Stack()))
		}
	}()
	c.decide(k)
}

func (c *Controller) decide(k types.NamespacedName) {
	ic := get[v1alpha1.Intercept](c.informers.intercepts, k.Namespace, k.Name)
	e := c.entries[k]
	if e != nil && (ic == nil || ic.UID != e.uid || ic.DeletionTimestamp != nil) {
		c.forget(k, e)
		e = nil
	}
	if ic == nil || ic.DeletionTimestamp != nil {
		return
	}
	if e == nil {
		e = newEntry(ic)
		e.unanswered.list = ic.Status.Unanswered // the count of the manager before this one
		c.entries[k], c.uids[e.uid] = e, k
	}
	e.intercept = ic

	keyHash := ic.Spec.Client.KeyHash
	if ic.Spec.Wiretap {
		keyHash = c.cfg.Sessions.Wiretapper(keyHash)
	}
	f := findings{connected: c.cfg.Sessions.Connected(keyHash)}
	c.judge(e, keyHash, f.connected)
	if e.judged.Refused() {
		c.refuse(e, &f)
	} else {
		f.resolution, f.invalid = c.resolve(e)
	}
	c.cfg.Plan.Set(e.uid, keyHash, c.decideClaim(e, &f))
	c.withdraw(e)
	if ends := c.grace(e, f.connected); ends {
		return
	}
	c.count(e)
	st := c.status(e, f)
	c.arrive(e, &f, st.State)
	c.writer.set(ic, st)
}

// judge finds out what the intercept may have. While its laptop is away, that stays as it was: a proof
// that runs out meanwhile is nothing against it.
func (c *Controller) judge(e *entry, keyHash string, connected bool) {
	if c.cfg.Holders == nil || !connected {
		return
	}
	if e.judged = c.cfg.Holders.Judge(e.intercept, keyHash); e.judged.Again > 0 {
		c.queue.AddAfter(key(e.intercept), e.judged.Again)
	}
}

// refuse leaves nothing of the intercept: no port that it held before, and no room for its rule.
func (c *Controller) refuse(e *entry, f *findings) {
	f.invalid = &resolve.Invalid{Reason: e.judged.Reason, Message: e.judged.Message, Advice: e.judged.Advice}
	e.granted = grant{}
	c.again(c.budget.Return(e.intercept.Namespace, e.uid))
}

// withdraw ends what is being carried for the intercept and it may not have. The plan comes first: who
// looks there afterwards begins nothing.
func (c *Controller) withdraw(e *entry) {
	if c.cfg.Withdrawn != nil && (e.judged.Refused() || e.judged.NoToPod) {
		c.cfg.Withdrawn(e.uid, !e.judged.Refused())
	}
}

func (c *Controller) forget(k types.NamespacedName, e *entry) {
	if c.cfg.Holders != nil {
		c.cfg.Holders.Forget(e.uid)
	}
	c.again(c.claims.Remove(e.uid))
	c.again(c.budget.Return(k.Namespace, e.uid))
	c.cfg.Plan.Set(e.uid, "", nil)
	c.writer.forget(e.uid)
	delete(c.entries, k)
	delete(c.uids, e.uid)
}

// resolve resolves the intercept. If there was only one service and one port to choose, and another
// has been added since, the earlier choice stands: adding a port to a service must not end an
// intercept.
func (c *Controller) resolve(e *entry) (*resolve.Resolution, *resolve.Invalid) {
	if e.ruleErr != nil {
		return nil, &resolve.Invalid{Reason: resolve.RuleInvalid, Message: e.ruleErr.Error()}
	}
	if bad := c.afford(e); bad != nil {
		return nil, bad
	}
	ic := e.intercept
	service, port, protocol, chosen := e.chosen()
	if chosen && ic.Spec.Protocol == "" {
		pinned := *ic
		pinned.Spec.Protocol = protocol
		if res, err := resolve.Intercept(c.informers, &pinned); err == nil {
			e.resolution, e.generation = res, ic.Generation
			return res, nil
		}
	}
	res, err := resolve.Intercept(c.informers, ic)
	var bad *resolve.Invalid
	if errors.As(err, &bad) && (bad.Reason == resolve.ServiceAmbiguous || bad.Reason == resolve.PortAmbiguous) {
		if chosen {
			pinned := *ic
			pinned.Spec.Service, pinned.Spec.Port, pinned.Spec.Protocol = service, port, protocol
			if again, err := resolve.Intercept(c.informers, &pinned); err == nil {
				res, bad = again, nil
			}
		}
	}
	if bad != nil {
		return nil, bad
	}
	e.resolution, e.generation = res, ic.Generation
	return res, nil
}

// afford returns why the namespace has no room for the rule's expressions, nil if it has.
func (c *Controller) afford(e *entry) *resolve.Invalid {
	ic, size := e.intercept, e.rule.Program()
	granted, changed := c.budget.Ask(ic.Namespace, e.uid, ic.CreationTimestamp.Time, size,
		meta.IsStatusConditionTrue(ic.Status.Conditions, v1alpha1.ConditionAccepted))
	c.again(changed)
	if granted {
		return nil
	}
	return &resolve.Invalid{Reason: resolve.RulesTooLarge, Message: fmt.Sprintf(
		"the regular expressions compile to %d instructions, and those of all intercepts in namespace %s "+
			"may have %d: use exact values or shorter expressions, or have others leave", size, ic.Namespace,
		namespaceProgram)}
}

// chosen returns the service and port to which the intercept, as it is now, was resolved before.
func (e *entry) chosen() (service, port string, protocol v1alpha1.Protocol, ok bool) {
	st := &e.intercept.Status
	switch {
	case e.resolution != nil && e.generation == e.intercept.Generation:
		return e.resolution.Service, e.resolution.Port, e.resolution.Protocol, true
	case e.resolution == nil && st.ObservedGeneration == e.intercept.Generation &&
		meta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionResolved):
		return st.Service, st.Port, cmp.Or(st.Protocol, v1alpha1.ProtocolTCP), true
	}
	return "", "", "", false
}

func (e *entry) claim(res *resolve.Resolution) claims.Claim {
	ic := e.intercept
	c := claims.Claim{
		UID: e.uid, Created: ic.CreationTimestamp.Time, Asked: res.Service + "/" + res.Port + "/" +
			string(res.Protocol),
		TCP: ic.Spec.Mechanism == v1alpha1.MechanismTCP, Rule: e.rule, Wiretap: ic.Spec.Wiretap,
		Accepted: meta.IsStatusConditionTrue(ic.Status.Conditions, v1alpha1.ConditionAccepted) &&
			ic.Status.Service == res.Service && ic.Status.Port == res.Port &&
			cmp.Or(ic.Status.Protocol, v1alpha1.ProtocolTCP) == res.Protocol,
	}
	udp := res.Protocol == v1alpha1.ProtocolUDP
	if res.TemplatePort != 0 {
		for _, owner := range res.Owners {
			c.Targets = append(c.Targets, claims.Target{UID: owner, Port: res.TemplatePort, UDP: udp})
		}
	}
	for _, p := range res.Pods {
		if p.Port != 0 {
			c.Targets = append(c.Targets, claims.Target{UID: p.UID, Port: p.Port, UDP: udp})
		}
	}
	slices.SortFunc(c.Targets, compareTargets)
	c.Targets = slices.Compact(c.Targets) // a Pod is its own workload
	return c
}

func (e *entry) placements(res *resolve.Resolution, connected bool) []plan.Placement {
	ic := e.intercept
	rule := &agentpb.Rule{
		InterceptUid: string(e.uid), InterceptNamespace: ic.Namespace, InterceptName: ic.Name, Called: ic.Spec.Name,
		Tcp: ic.Spec.Mechanism == v1alpha1.MechanismTCP, Existing: ic.Spec.Existing, Connected: connected,
		Environment: ic.Spec.Environment && !e.judged.NoEnvironment,
	}
	if !e.judged.NoToPod {
		for _, port := range ic.Spec.ToPod {
			rule.ToPod = append(rule.ToPod, uint32(port))
		}
	}
	if !rule.Tcp {
		rule.Http = e.rule.Proto()
	}
	var all []plan.Placement
	for _, p := range res.Pods {
		if p.Port == 0 {
			continue
		}
		one := plan.Placement{
			Node: p.Spec.NodeName, Pod: podMessage(p.Pod), Port: uint32(p.Port),
			UDP: res.Protocol == v1alpha1.ProtocolUDP, Rule: rule, Wiretap: ic.Spec.Wiretap,
		}
		if !one.UDP { // the kubelet has no probes for it
			one.Probes = resolve.KubeletProbes(&p.Spec, p.Port)
		}
		all = append(all, one)
	}
	return all
}

func podMessage(p *corev1.Pod) *agentpb.Pod {
	m := &agentpb.Pod{
		Uid: string(p.UID), Namespace: p.Namespace, Name: p.Name, Ips: resolve.Addresses(p),
		HostNetwork: p.Spec.HostNetwork,
	}
	for _, ip := range p.Status.HostIPs {
		m.HostIps = append(m.HostIps, ip.IP)
	}
	if len(m.HostIps) == 0 && p.Status.HostIP != "" {
		m.HostIps = []string{p.Status.HostIP}
	}
	if p.Spec.RuntimeClassName != nil {
		m.RuntimeClass = *p.Spec.RuntimeClassName
	}
	return m
}

// grace deletes an intercept whose laptop has been away for too long. It returns true if it has
// ordered the deletion.
func (c *Controller) grace(e *entry, connected bool) bool {
	if connected {
		e.away = time.Time{}
		return false
	}
	now := time.Now()
	if e.away.IsZero() {
		// also after a start of the manager: laptops get the whole grace period to find the new one
		e.away = now
	}
	left := c.cfg.Grace - now.Sub(e.away)
	if left > 0 {
		c.queue.AddAfter(key(e.intercept), left)
		return false
	}
	c.writer.remove(e.intercept,
		fmt.Sprintf("the laptop of %s has not been connected for %s", e.intercept.Spec.Client.Holder,
			c.cfg.Grace))
	return true
}
