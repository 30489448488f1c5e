package layout

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"sidestep.dev/sidestep/api/daemonpb"
)

// Workload is what programs read about one workload.
type Workload struct {
	Name             string      `json:"name"`
	Namespace        string      `json:"namespace"`
	WorkloadKind     string      `json:"workload_kind"`
	NotInterceptable string      `json:"not_interceptable_reason,omitempty"`
	Intercepts       []Intercept `json:"intercepts,omitempty"`
	Others           []Intercept `json:"intercepts_of_others,omitempty"`
}

// WorkloadRecords are the records of a list. They are never nil, so that an empty list is [] and not null.
func WorkloadRecords(workloads []*daemonpb.WorkloadInfo) []Workload {
	records := make([]Workload, 0, len(workloads))
	for _, w := range sorted(workloads) {
		records = append(records, Workload{
			Name: w.GetName(), Namespace: w.GetNamespace(), WorkloadKind: w.GetKind(), NotInterceptable: w.GetNotInterceptable(),
			Intercepts: interceptRecords(w.GetIntercepts()), Others: interceptRecords(w.GetOthers()),
		})
	}
	return records
}

// List writes one line for each workload, and a block for each intercept of this client. Names carry their namespace when
// the list spans several.
func List(w io.Writer, workloads []*daemonpb.WorkloadInfo, p Paint) error {
	workloads = sorted(workloads)
	names, width := make([]string, len(workloads)), 0
	for i, wl := range workloads {
		names[i] = wl.GetName()
		if slices.ContainsFunc(workloads, func(o *daemonpb.WorkloadInfo) bool { return o.GetNamespace() != wl.GetNamespace() }) {
			names[i] += "." + wl.GetNamespace()
		}
		width = max(width, utf8.RuneCountInString(names[i]))
	}
	var text strings.Builder
	for i, wl := range workloads {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(names[i]))
		fmt.Fprintf(&text, "%s%s: %s\n", names[i], pad, workloadState(wl, p))
		for _, mine := range byName(wl.GetIntercepts()) {
			_, _ = interceptBlock(mine, p).WriteTo(&text)
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

func workloadState(w *daemonpb.WorkloadInfo, p Paint) string {
	switch {
	case len(w.GetIntercepts()) > 0:
		return p.Good("intercepted") + alsoBy(w.GetOthers())
	case w.GetNotInterceptable() != "":
		return p.Odd("not interceptable") + ": " + w.GetNotInterceptable()
	default:
		return "ready to intercept" + alsoBy(w.GetOthers())
	}
}

// alsoBy names the other people who hold an intercept on the workload, and what they take when they take everything.
func alsoBy(others []*daemonpb.InterceptInfo) string {
	var people []string
	for _, o := range others {
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
	return ", also intercepted by " + strings.Join(people, ", ")
}
