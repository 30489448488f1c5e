// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
)

// Intercept is the record of one intercept.
type Intercept struct {
	ID            string   `json:"id,omitempty"`
	Name          string   `json:"name"`
	Namespace     string   `json:"namespace"`
	WorkloadKind  string   `json:"workload_kind"`
	Workload      string   `json:"workload"`
	State         string   `json:"state"`
	Message       string   `json:"message,omitempty"`
	Destination   string   `json:"destination,omitempty"`
	Service       string   `json:"service,omitempty"`
	ServicePortID string   `json:"service_port_id,omitempty"`
	Protocol      string   `json:"protocol,omitempty"`
	Container     string   `json:"container,omitempty"`
	ToPod         []int32  `json:"to_pod,omitempty"`
	Mechanism     string   `json:"mechanism"`
	Wiretap       bool     `json:"wiretap,omitempty"`
	Intercepting  string   `json:"intercepting"`
	Conditions    []string `json:"conditions,omitempty"`
	Headers       []string `json:"headers,omitempty"`
	Client        string   `json:"client"`
	Coverage      string   `json:"coverage,omitempty"`
	Pods          []Pod    `json:"pods,omitempty"`
	// Answered is how many requests, or connections, this laptop answered, if that was asked for.
	Answered   *uint64      `json:"answered,omitempty"`
	Unanswered []Unanswered `json:"unanswered,omitempty"`
	// Traffic is what was counted, if that was asked for.
	Traffic *Traffic `json:"traffic,omitempty"`
	// Copies is what a wiretap got, if that was asked for.
	Copies *Copies `json:"copies,omitempty"`
}

// Pod is one ready pod of an intercepted workload.
type Pod struct {
	Name     string `json:"name"`
	Node     string `json:"node"`
	Steering bool   `json:"steering"`
	Message  string `json:"message,omitempty"`
}

// InterceptRecord is the record of an intercept.
func InterceptRecord(i *daemonpb.InterceptInfo) Intercept {
	r := Intercept{
		ID: i.GetId(), Container: i.GetContainer(), Name: i.GetName(), Namespace: i.GetNamespace(),
		WorkloadKind: i.GetWorkloadKind(), Workload: i.GetWorkload(),
		State: i.GetState(), Message: i.GetMessage(), Destination: i.GetDestination(), Service: i.GetService(),
		ServicePortID: i.GetServicePort(), Protocol: i.GetProtocol(), ToPod: i.GetToPod(),
		Mechanism: i.GetMechanism(), Wiretap: i.GetWiretap(),
		Intercepting: intercepting(i),
		Conditions:   i.GetConditions(), Headers: i.GetCurlHeaders(), Client: i.GetHolder(),
		Coverage: i.GetCoverage(), Unanswered: unansweredRecords(misses(i, nil)),
	}
	for _, p := range i.GetPods() {
		r.Pods = append(r.Pods, Pod{Name: p.GetName(), Node: p.GetNode(), Steering: p.GetSteering(),
			Message: p.GetMessage()})
	}
	return r
}

func interceptRecords(infos []*daemonpb.InterceptInfo) []Intercept {
	records := make([]Intercept, 0, len(infos))
	for _, i := range byName(infos) {
		records = append(records, InterceptRecord(i))
	}
	return records
}

// byName returns the intercepts sorted by name, so that what is printed twice is the same twice.
func byName(infos []*daemonpb.InterceptInfo) []*daemonpb.InterceptInfo {
	return slices.SortedStableFunc(slices.Values(infos), func(a, b *daemonpb.InterceptInfo) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetNamespace(), b.GetNamespace()))
	})
}

func intercepting(i *daemonpb.InterceptInfo) string {
	switch {
	case i.GetProtocol() == "UDP":
		return "all UDP datagrams"
	case i.GetMechanism() != "http":
		return "all TCP connections"
	case len(i.GetConditions()) == 0:
		return "all HTTP requests"
	default:
		return "HTTP requests that match all of:"
	}
}

// Forwarded is printed beside an intercept, because it is the first thing that users try.
const Forwarded = "from inside the cluster, or by its ingress; kubectl port-forward leads past intercepts"

// NewIntercept writes what `intercept` prints about the intercept that it made. url is where a
// request for it can be sent from inside the cluster, "" if that is unknown.
func NewIntercept(w io.Writer, i *daemonpb.InterceptInfo, url string, p Paint) error {
	i, url = safely(i), Safe(url)
	if _, err := fmt.Fprintf(w, "Using %s %s\n", i.GetWorkloadKind(), i.GetWorkload()); err != nil {
		return err
	}
	done := stateIntercepted
	if i.GetWiretap() {
		done = stateWiretapped
	}
	if _, err := fmt.Fprintln(w, done); err != nil {
		return err
	}
	b := interceptBlock(i, time.Time{}, p)
	if url != "" {
		b.Add("Try it with", curl(i.GetCurlHeaders(), url), Forwarded)
	}
	_, err := b.WriteTo(w)
	return err
}

func interceptBlock(i *daemonpb.InterceptInfo, now time.Time, p Paint) *Block {
	b := &Block{Indent: "    ", Hang: "      "}
	name, what := "Intercept name", "Intercepting"
	if i.GetWiretap() {
		name, what = "Wiretap name", "Wiretapping"
	}
	b.Add(name, i.GetName())
	state := p.state(i.GetState())
	if i.GetMessage() != "" && i.GetState() != "ACTIVE" {
		state += ": " + i.GetMessage()
	}
	b.Add("State", state)
	if i.GetMessage() != "" && i.GetState() == "ACTIVE" {
		b.Add("Warning", i.GetMessage())
	}
	b.Add("Not answered here", unansweredLine(misses(i, nil), now, i.GetMechanism()))
	b.Add("Workload kind", i.GetWorkloadKind())
	b.Add("Destination", i.GetDestination())
	b.Add("Service Port Identifier", i.GetServicePort())
	b.Add("Ports of the pod", toPod(i.GetToPod()))
	b.Add(what, intercepting(i), i.GetConditions()...)
	return b
}

// toPod returns where on this laptop ports of a pod are.
func toPod(ports []int32) string {
	places := make([]string, len(ports))
	for i, port := range ports {
		places[i] = fmt.Sprintf("localhost:%d", port)
	}
	return strings.Join(places, ", ")
}

func curl(headers []string, url string) string {
	words := []string{"curl"}
	for _, h := range headers {
		words = append(words, "-H", Quote(h))
	}
	if strings.Trim(url, plainURL) != "" {
		url = Quote(url)
	}
	return strings.Join(append(words, url), " ")
}

// plainURL is the characters that mean nothing to a shell.
const plainURL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/:%+,@"

// Quote quotes s as one word for a POSIX shell.
func Quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
