// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sidestep.dev/sidestep/api/daemonpb"
)

// Workload is the record of one workload.
type Workload struct {
	Name             string      `json:"name"`
	Namespace        string      `json:"namespace"`
	WorkloadKind     string      `json:"workload_kind"`
	State            string      `json:"state"`
	NotInterceptable string      `json:"not_interceptable_reason,omitempty"`
	Intercepts       []Intercept `json:"intercepts,omitempty"`
	Others           []Intercept `json:"intercepts_of_others,omitempty"`
}

// WorkloadRecords returns the records of a list. It never returns nil, so that an empty list is []
// and not null.
func WorkloadRecords(workloads []*daemonpb.WorkloadInfo) []Workload {
	records := make([]Workload, 0, len(workloads))
	for _, w := range sorted(workloads) {
		records = append(records, Workload{
			Name: w.GetName(), Namespace: w.GetNamespace(), WorkloadKind: w.GetKind(), State: workloadState(w),
			NotInterceptable: w.GetNotInterceptable(),
			Intercepts:       interceptRecords(w.GetIntercepts()), Others: interceptRecords(w.GetOthers()),
		})
	}
	return records
}

// List writes one line for each workload, and a block for each intercept of this client. Names
// carry their namespace when the list spans several.
func List(w io.Writer, workloads []*daemonpb.WorkloadInfo, now time.Time, p Paint) error {
	workloads = slices.Clone(workloads)
	for i, w := range workloads {
		workloads[i] = safely(w)
	}
	workloads = sorted(workloads)
	names, width := make([]string, len(workloads)), 0
	for i, wl := range workloads {
		names[i] = wl.GetName()
		if slices.ContainsFunc(workloads, func(o *daemonpb.WorkloadInfo) bool {
			return o.GetName() == wl.GetName() && o.GetNamespace() == wl.GetNamespace() &&
				o.GetKind() != wl.GetKind()
		}) {
			// as it is written on the command line
			names[i] = strings.ToLower(wl.GetKind()) + "/" + wl.GetName()
		}
		if slices.ContainsFunc(workloads,
			func(o *daemonpb.WorkloadInfo) bool { return o.GetNamespace() != wl.GetNamespace() }) {
			names[i] += "." + wl.GetNamespace()
		}
		width = max(width, utf8.RuneCountInString(names[i]))
	}
	var text strings.Builder
	for i, wl := range workloads {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(names[i]))
		fmt.Fprintf(&text, "%s%s: %s\n", names[i], pad, workloadText(wl, p))
		for _, mine := range byName(wl.GetIntercepts()) {
			_, _ = interceptBlock(mine, now, p).WriteTo(&text)
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func sorted(workloads []*daemonpb.WorkloadInfo) []*daemonpb.WorkloadInfo {
	return slices.SortedStableFunc(slices.Values(workloads), func(a, b *daemonpb.WorkloadInfo) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()),
			cmp.Compare(a.GetKind(), b.GetKind()))
	})
}

// What can be said about a workload.
const (
	stateIntercepted      = "intercepted"
	stateWiretapped       = "wiretapped"
	stateNotInterceptable = "not interceptable"
	stateReady            = "ready to intercept"
)

func workloadState(w *daemonpb.WorkloadInfo) string {
	switch {
	case slices.ContainsFunc(w.GetIntercepts(),
		func(i *daemonpb.InterceptInfo) bool { return !i.GetWiretap() }):
		return stateIntercepted
	case len(w.GetIntercepts()) > 0:
		return stateWiretapped
	case w.GetNotInterceptable() != "":
		return stateNotInterceptable
	default:
		return stateReady
	}
}

func workloadText(w *daemonpb.WorkloadInfo, p Paint) string {
	switch state := workloadState(w); state {
	case stateIntercepted:
		return p.Good(state) + others(", also by ", w.GetOthers(), false) +
			others(", wiretapped by ", w.GetOthers(), true)
	case stateWiretapped:
		return p.Good(state) + others(", also by ", w.GetOthers(), true) +
			others(", intercepted by ", w.GetOthers(), false)
	case stateNotInterceptable:
		return p.Odd(state) + ": " + w.GetNotInterceptable()
	default:
		return state + others(", intercepted by ", w.GetOthers(), false) +
			others(", wiretapped by ", w.GetOthers(), true)
	}
}

// others names the other holders of intercepts, or of wiretaps, on the workload, and what they take
// if they take everything.
func others(prefix string, intercepts []*daemonpb.InterceptInfo, wiretaps bool) string {
	var people []string
	for _, o := range intercepts {
		if o.GetWiretap() != wiretaps {
			continue
		}
		who := o.GetHolder()
		if len(o.GetConditions()) == 0 {
			who += " (" + intercepting(o) + ")"
		}
		if !slices.Contains(people, who) {
			people = append(people, who)
		}
	}
	if len(people) == 0 {
		return ""
	}
	slices.Sort(people)
	return prefix + strings.Join(people, ", ")
}
