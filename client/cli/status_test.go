// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/daemonpb"
)

// anIntercept is an active http intercept of two pods.
func anIntercept() *daemonpb.InterceptInfo {
	return &daemonpb.InterceptInfo{
		Name: "orders-shop", Namespace: "shop", WorkloadKind: "Deployment", Workload: "orders",
		State: "ACTIVE", Destination: "127.0.0.1:9000",
		Service: "orders", ServicePort: "http", Mechanism: "http", Holder: "jane@laptop", Coverage: "2/2",
		Conditions: []string{`header("x-telepresence-intercept-id") ~= regexp("` + testSession +
			`:orders-shop")`, `path-prefix("/api")`},
		CurlHeaders: []string{"x-telepresence-intercept-id: " + testSession + ":orders-shop"},
		Pods: []*daemonpb.PodInfo{
			{Name: "orders-5d9c7b-abcde", Node: "node1", Steering: true},
			{Name: "orders-5d9c7b-fghij", Node: "node2", Steering: true},
		},
	}
}

func aTroubledIntercept() *daemonpb.InterceptInfo {
	return &daemonpb.InterceptInfo{
		Name: "echo", Namespace: "default", WorkloadKind: "StatefulSet", Workload: "echo",
		State: "FAILED", Destination: "127.0.0.1:7000",
		Message: "pod echo-1 cannot be steered", Mechanism: "tcp", Holder: "jane@laptop", Coverage: "1/2",
		Pods: []*daemonpb.PodInfo{
			{Name: "echo-0", Node: "node1", Steering: true},
			{Name: "echo-1", Node: "node2", Message: "needs Linux 5.9, this is 5.4"},
		},
	}
}

// anUnansweredIntercept is active, and this laptop has not answered all of its requests.
func anUnansweredIntercept() *daemonpb.InterceptInfo {
	i := anIntercept()
	i.Id = testSession + ":orders-shop"
	last := time.Date(2026, 1, 2, 3, 3, 53, 0, time.UTC).Unix()
	i.Unanswered = []*daemonpb.UnansweredInfo{{Reason: "LocalTLS", Count: 3, Last: last},
		{Reason: "Framing", Count: 1, Last: last - 120}}
	return i
}

// aDeafIntercept is active, and its port speaks TLS.
func aDeafIntercept() *daemonpb.InterceptInfo {
	const why = "the port speaks TLS, so no request on it can match: use --mechanism tcp to take every " +
		"connection"
	i := anIntercept()
	i.Message = why
	for _, pod := range i.Pods {
		pod.Message = why
	}
	return i
}

func TestStatus(t *testing.T) {
	for name, set := range map[string]func(*world){
		"without a daemon":   func(*world) {},
		"not connected":      func(w *world) { w.connected(false) },
		"connected, nothing": func(w *world) { w.connected(true) },
		"connected, intercepts": func(w *world) {
			w.daemon.status = statusOf(anIntercept(),
				aTroubledIntercept())
			w.connected(true)
		},
		"with an intercept on a TLS port": func(
			w *world) {
			w.daemon.status = statusOf(aDeafIntercept())
			w.connected(true)
		},
		"of a resumed session": func(
			w *world) {
			w.hasSaved = true
			w.daemon.status = statusOf(anIntercept())
		},
		"as telepresence":    func(w *world) { w.Name = "telepresence"; w.connected(true) },
		"of another version": func(w *world) { w.daemon.version = "v1.0.0"; w.connected(true) },
		"on a colour terminal": func(
			w *world) {
			w.terminal = true
			w.daemon.status = statusOf(
				aTroubledIntercept())
			w.connected(true)
		},
		"on a terminal NO_COLOR": func(
			w *world) {
			w.terminal = true
			w.vars["NO_COLOR"] = "1"
			w.connected(true)
		},
		"reconnecting": func(w *world) {
			w.daemon.status = statusOf(anIntercept())
			w.daemon.status.Connected, w.daemon.status.State = false, "Reconnecting"
			w.daemon.status.Message = "the port-forward to pod sidestep-manager-0 ended"
			w.connected(true)
		},
	} {
		t.Run("status "+name, func(t *testing.T) {
			w := newWorld(t)
			set(w)
			text := w.transcript("status")
			for _, args := range [][]string{{"status", "--wide"}, {"status", "--output", "json"},
				{"--output=yaml", "status"}} {
				text += "\n" + w.transcript(args...)
			}
			golden(t, "status "+name, text)
		})
	}
}

func TestStatusOfNodeAgents(t *testing.T) {
	for name, set := range map[string]func(*world){
		"of every kind": func(w *world) {
			w.daemon.agents = &daemonpb.NodeAgentsReply{Agents: []*daemonpb.NodeAgentInfo{
				{Node: "node1", Attached: true, Version: testVersion, Kernel: "6.12.48-amd64",
					Datapath: "sk_lookup", Reason: "the kernel has it"},
				{Node: "node10", Attached: true, Version: testVersion, Kernel: "6.12.48-amd64",
					Datapath: "tcx", Reason: "chosen by --datapath=tc"},
				{Node: "node2"},
				{Node: "node3", Attached: true, Version: testVersion, Kernel: "5.4.0",
					Reason: "steering by TC needs Linux 5.8"},
				{Node: "node4", Attached: true, Version: "v1.0.0", Kernel: "6.1.0-amd64"},
			}}
		},
		"that are not known": func(w *world) {
			w.daemon.agentsErr = status.Error(codes.Unavailable, "the traffic manager: gone")
		},
		"that have counted connections": func(w *world) {
			counted, other := anIntercept(), aTroubledIntercept()
			counted.Id, other.Id = testSession+":orders-shop", testSession+":echo"
			w.daemon.status = statusOf(counted, other,
				&daemonpb.InterceptInfo{Name: "fresh", State: "PENDING", Id: testSession + ":fresh"})
			w.daemon.agents = &daemonpb.NodeAgentsReply{
				Agents: []*daemonpb.NodeAgentInfo{{Node: "node1", Attached: true, Version: testVersion,
					Kernel: "6.12.48", Datapath: "sk_lookup", Reason: "the kernel has it"}},
				Traffic: []*daemonpb.TrafficInfo{
					{InterceptId: counted.Id, Traffic: &agentpb.Traffic{
						Opened: 352, Closed: 340, Aborted: 3, ReceivedBytes: 3_400_000,
						SentBytes: 80_123_456, RetransmittedSegments: 17, RttSamples: 340,
						RttSumUs: 340 * 412,
					}},
					{InterceptId: other.Id, Traffic: &agentpb.Traffic{Opened: 1, ReceivedBytes: 0}},
				},
			}
		},
		"of requests that this laptop does not answer": func(w *world) {
			i := anUnansweredIntercept()
			answered := uint64(41)
			w.daemon.status = statusOf(i)
			w.daemon.agents = &daemonpb.NodeAgentsReply{Traffic: []*daemonpb.TrafficInfo{{
				InterceptId: i.Id, Answered: &answered, Unanswered: []*agentpb.Unanswered{
					{Reason: agentpb.Unanswered_SILENT, Count: 1}, {Reason: agentpb.Unanswered_LOCAL_TLS, Count: 5},
				}}}}
		},
		"in colours": func(w *world) {
			w.terminal = true
			w.daemon.agents = &daemonpb.NodeAgentsReply{Agents: []*daemonpb.NodeAgentInfo{
				{Node: "node1", Attached: true, Version: testVersion, Kernel: "5.10.0",
					Datapath: "clsact", Reason: "chosen by --datapath=tc; tcx needs Linux 6.6"},
				{Node: "node2"},
			}}
		},
	} {
		t.Run("node agents "+name, func(t *testing.T) {
			w := newWorld(t)
			set(w)
			w.connected(true)
			text := w.transcript("status", "--wide") + "\n" + w.transcript("status", "--wide", "--output", "json")
			if strings.HasPrefix(name, "of requests") {
				text += "\n" + w.transcript("status") + "\n" + w.transcript("status", "--output", "json")
			}
			golden(t, "node agents "+name, text)
		})
	}
}

func TestStatusStartsNoDaemonUnlessThereIsASessionToResume(t *testing.T) {
	w := newWorld(t)
	assert.Zero(t, w.do("status"))
	assert.Zero(t, w.do("version"))
	assert.Zero(t, w.do("quit"))
	assert.Zero(t, w.launches)

	w.hasSaved = true
	assert.Zero(t, w.do("version"))
	assert.Zero(t, w.launches, "the version can be told without")
	assert.Zero(t, w.do("status"))
	assert.Equal(t, 1, w.launches)
}

func TestVersion(t *testing.T) {
	w := newWorld(t)
	text := w.transcript("version")
	w.connected(true)
	text += "\n" + w.transcript("version") + "\n" + w.transcript("version", "--output", "json") + "\n" +
		w.transcript("version", "--format=yaml") +
		"\n" + w.transcript("--version")
	golden(t, "version", text)
}
