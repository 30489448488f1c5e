// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/part"
)

// report is the state of all the pod's rules.
func (p *pod) report() []*agentpb.TargetReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var reports []*agentpb.TargetReport
	for _, t := range targets(p.wanted) {
		for i, r := range allRules(t.Target) {
			reports = append(reports, p.reportRule(t, r, i >= len(t.GetRules())))
		}
	}
	return reports
}

// reportRule is the state of one rule. p.mu must be held.
func (p *pod) reportRule(t target, r *agentpb.Rule, wiretap bool) *agentpb.TargetReport {
	report := &agentpb.TargetReport{PodUid: p.uid, Port: t.GetPort(), InterceptUid: r.GetInterceptUid(),
		Message: p.problem, Failed: p.lasting}
	o := p.opened
	if o == nil {
		return report
	}
	idle := ""
	if !t.udp {
		stats := o.stats(t.at().Port)
		counted := stats.Intercepts[r.GetInterceptUid()]
		idle = stats.Idle(r.GetTcp())
		report.Connections, report.Matched, report.Fallbacks = stats.Connections, counted.Matched, counted.Fallbacks
		if !wiretap {
			report.Answered = &counted.Answered
		}
		for reason, n := range counted.Unanswered {
			if n > 0 {
				report.Unanswered = append(report.Unanswered, &agentpb.Unanswered{
					Reason: agentpb.Unanswered_Reason(reason), Count: n})
			}
		}
		if c := counted.Copies; wiretap {
			report.Copies = &agentpb.Copies{Copied: c.Copied, Cut: c.Cut, Dropped: c.Dropped}
		}
	}
	for _, one := range o.parts {
		if rep, ok := one.(part.Reporter); ok {
			rep.Report(t.at(), r, report)
		}
	}
	if p.problem != "" {
		return report
	}
	report.Steering, report.Failed, report.Message = p.proofs.verdict(t, r)
	problem := o.problem(t.at(), r)
	switch {
	case p.proofs.altered[t.check(r)]: // whatever is known is about the rule as it was
	case problem.Refuse:
		report.Steering, report.Failed, report.Message = false, true, problem.Message
	case report.Steering && problem.Message != "":
		report.Message = problem.Message
	case report.Steering:
		report.Message = idle
	}
	return report
}
